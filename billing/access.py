"""Who sees what a customer pays."""

from cng_portal.accounts.models import Customer, Role, User


def billed_customer(user: User) -> Customer | None:
    """The person's customer, if the person owns at least one of its projects. No query beyond `user.seen`."""
    owns = any(customer_id == user.customer_id and role == Role.OWNER for _project, customer_id, role in user.seen)
    return user.customer if owns else None
