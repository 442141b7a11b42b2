"""Who may see a customer's bills."""

from cng_portal.accounts.models import Customer, User


def billed_customer(user: User) -> Customer | None:
    """Return the user's customer if the user owns at least one of its projects. No query beyond `user.project_roles`."""
    return user.customer if user.owns_customer else None
