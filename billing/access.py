"""Who sees what a customer pays."""

from cng_portal.accounts.models import Customer, User


def billed_customer(user: User) -> Customer | None:
    """The person's customer, if the person owns at least one of its projects. No query beyond `user.seen`."""
    return user.customer if user.owns_customer else None
