"""Writes that concern people and customers."""

from uuid import UUID

from django.db import models, transaction
from django.utils import timezone

from .models import BillingType, Customer, Membership, Project, Role, User


def lock_customer(customer_id: UUID) -> None:
    """Hold everything that is limited per customer until the running transaction ends: quotas, names, credits.

    It is an UPDATE and not ``select_for_update``, which SQLite ignores: on SQLite it takes the write lock of the
    database, on PostgreSQL that of the row. What is read afterwards in the same transaction is then up to date.
    """
    if not transaction.get_connection().in_atomic_block:
        raise RuntimeError("lock_customer outside a transaction would hold nothing")
    Customer.objects.filter(pk=customer_id).update(locked_at=timezone.now())


@transaction.atomic
def create_customer(
    *, name: str, owner: User, billing_type: str = BillingType.PREPAID, number: int | None = None, **fields: object
) -> Customer:
    """Make a customer with its `Default` project, owned by `owner`. Without a number it gets the next free one."""
    if number is None:
        number = (Customer.objects.aggregate(last=models.Max("number"))["last"] or 0) + 1
    customer = Customer.objects.create(name=name, billing_type=billing_type, number=number, **fields)
    create_project(customer=customer, name=Project.DEFAULT_NAME, owner=owner)
    User.objects.filter(pk=owner.pk, customer=None).update(customer=customer)
    owner.refresh_from_db()
    return customer


@transaction.atomic
def create_project(*, customer: Customer, name: str, owner: User) -> Project:
    project = Project.objects.create(customer=customer, name=name)
    Membership.objects.create(project=project, user=owner, role=Role.OWNER)
    return project
