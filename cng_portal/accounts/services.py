"""Creating customers and projects, their lock, and the e-mail addresses of users."""

from uuid import UUID

from allauth.account.models import EmailAddress
from django.db import models, transaction
from django.utils import timezone

from cng_portal.common.locks import lock_name

from .models import BillingType, Customer, Membership, Project, Role, User


def lock_customer(customer_id: UUID) -> None:
    """Lock the customer's limits (quotas, names, credits) until the transaction ends.

    An UPDATE instead of `select_for_update`, which SQLite ignores: it takes the database's write lock on SQLite and the
    row's on PostgreSQL. Whatever the transaction reads afterwards is up to date.

    Lock order, everywhere: the customer first, then any other row (operations, snapshots, volumes, usage); several
    customers in the order of their ids. A transaction that writes another row first and locks the customer afterwards
    deadlocks on PostgreSQL with one that keeps the order.
    """
    if not transaction.get_connection().in_atomic_block:
        raise RuntimeError("lock_customer needs a transaction")
    Customer.objects.filter(pk=customer_id).update(locked_at=timezone.now())


def lock_customers(customers: models.QuerySet[Customer]) -> None:
    """Lock several customers, in the order of their ids."""
    for customer_id in sorted(set(customers.values_list("pk", flat=True))):
        lock_customer(customer_id)


@transaction.atomic
def set_verified_email(user: User) -> None:
    """Mark the user's address as verified in allauth: it comes from an administrator or an invitation.

    Otherwise allauth would replace it as soon as another one is added, before that one is confirmed.
    """
    of_others = EmailAddress.objects.filter(email__iexact=user.email).exclude(user=user)
    old = EmailAddress.objects.filter(user=user, primary=True).exclude(email__iexact=user.email)
    (of_others | old).delete()
    EmailAddress.objects.update_or_create(
        user=user, email=user.email.lower(), defaults={"verified": True, "primary": True}
    )


def delete_other_addresses(user: User) -> None:
    """Delete former and unconfirmed addresses."""
    EmailAddress.objects.filter(user=user).exclude(email__iexact=user.email).delete()


@transaction.atomic
def create_customer(
    *, name: str, owner: User, billing_type: str = BillingType.PREPAID, number: int | None = None, **fields: object
) -> Customer:
    """Create a customer with its `Default` project, owned by `owner`. `number` defaults to the next free one."""
    lock_name(Customer._meta.label_lower)  # so that nobody else takes the number
    if number is None:
        number = (Customer.objects.aggregate(last=models.Max("number"))["last"] or 0) + 1
    customer = Customer.objects.create(name=name, billing_type=billing_type, number=number, **fields)
    project = Project.objects.create(customer=customer, name=Project.DEFAULT_NAME)
    Membership.objects.create(project=project, user=owner, role=Role.OWNER)
    User.objects.filter(pk=owner.pk, customer=None).update(customer=customer)
    owner.refresh_from_db()
    return customer
