"""Who sees what a customer pays."""

from cng_portal.accounts.models import Customer, Role, User


def billed_customer(user: User) -> Customer | None:
    """The person's customer, if the person owns at least one of its projects."""
    customer = user.customer
    if customer is None:
        return None
    owned = [project_id for project_id, role in user.roles.items() if role == Role.OWNER]
    return customer if owned and customer.projects.filter(pk__in=owned).exists() else None
