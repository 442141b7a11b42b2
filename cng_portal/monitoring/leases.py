"""Leases in the database, by which one of many processes acts."""

from datetime import UTC, datetime, timedelta

from django.db.models import Q
from django.db.models.functions import Now

from .models import Lease

LONG_AGO = datetime(1970, 1, 1, tzinfo=UTC)


def acquire_lease(name: str, *, holder: str, seconds: float) -> bool:
    """Acquire the lease, or renew the holder's own, for `seconds` from now. Return False while another holder has it.

    One compare-and-set by the database's clock, so the machines' clocks need not agree. What runs under a lease must stay
    correct when two holders overlap: a process that hangs past its lease resumes where it stopped.
    """
    available = Lease.objects.filter(name=name).filter(Q(holder=holder) | Q(expires_at__lt=Now()))
    fields = {"holder": holder, "expires_at": Now() + timedelta(seconds=seconds)}
    if available.update(**fields):
        return True
    if Lease.objects.filter(name=name).exists():
        return False
    Lease.objects.bulk_create([Lease(name=name, expires_at=LONG_AGO)], ignore_conflicts=True)
    return available.update(**fields) == 1


def release_lease(name: str, *, holder: str) -> None:
    """Let another process acquire the lease at once. No-op unless `holder` has it."""
    Lease.objects.filter(name=name, holder=holder).update(expires_at=LONG_AGO)
