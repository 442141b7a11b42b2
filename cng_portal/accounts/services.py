"""Writes that concern people and customers."""

from uuid import UUID

from allauth.account.models import EmailAddress
from django.db import models, transaction
from django.utils import timezone

from .models import BillingType, Customer, Membership, Project, Role, User


def lock_customer(customer_id: UUID) -> None:
    """Hold everything that is limited per customer until the running transaction ends: quotas, names, credits.

    It is an UPDATE and not ``select_for_update``, which SQLite ignores: on SQLite it takes the write lock of the
    database, on PostgreSQL that of the row. What is read afterwards in the same transaction is then up to date.

    Lock order, everywhere: the customer first, then any other row (operations, snapshots, volumes, usage); several
    customers in the order of their ids. A transaction that writes another row first and locks the customer afterwards
    deadlocks on PostgreSQL with one that keeps the order.
    """
    if not transaction.get_connection().in_atomic_block:
        raise RuntimeError("lock_customer outside a transaction would hold nothing")
    Customer.objects.filter(pk=customer_id).update(locked_at=timezone.now())


@transaction.atomic
def vouch_for_email(user: User) -> None:
    """allauth knows the person's address as the confirmed one: an administrator or an invitation has vouched for it.

    Without that, allauth would take it away when another one is added, long before that one is confirmed.
    """
    of_others = EmailAddress.objects.filter(email__iexact=user.email).exclude(user=user)
    old = EmailAddress.objects.filter(user=user, primary=True).exclude(email__iexact=user.email)
    (of_others | old).delete()  # an administrator has given them another one since
    EmailAddress.objects.update_or_create(
        user=user, email=user.email.lower(), defaults={"verified": True, "primary": True}
    )


def forget_other_addresses(user: User) -> None:
    """Those that opened the account before an administrator gave it another one, or that wait for a confirmation."""
    EmailAddress.objects.filter(user=user).exclude(email__iexact=user.email).delete()


@transaction.atomic
def create_customer(
    *, name: str, owner: User, billing_type: str = BillingType.PREPAID, number: int | None = None, **fields: object
) -> Customer:
    """Make a customer with its `Default` project, owned by `owner`. Without a number it gets the next free one."""
    if number is None:
        number = (Customer.objects.aggregate(last=models.Max("number"))["last"] or 0) + 1
    customer = Customer.objects.create(name=name, billing_type=billing_type, number=number, **fields)
    project = Project.objects.create(customer=customer, name=Project.DEFAULT_NAME)
    Membership.objects.create(project=project, user=owner, role=Role.OWNER)
    User.objects.filter(pk=owner.pk, customer=None).update(customer=customer)
    owner.refresh_from_db()
    return customer
