"""Packages and their price versions: every write."""

from datetime import datetime

from django.db import transaction
from django.db.models.functions import Now
from django.utils import timezone

from cng_portal.accounts.models import User
from cng_portal.activity import services as activity
from cng_portal.common import money
from cng_portal.inventory.models import Location

from .errors import Refused
from .models import PAST, Package, PriceVersion, ServiceKind
from .seals import seal, seal_deletion


@transaction.atomic
def create_package(
    *,
    location: Location,
    kind: str,
    rate_micro: int,
    starts_at: datetime,
    currency: str = money.DEFAULT_CURRENCY,
    name: str = "",
    by: User | None = None,
) -> Package:
    """Create a package with its first price. Raises ValidationError."""
    name = name or f"{ServiceKind(kind).label} {location.pk}"
    package = Package(location=location, kind=kind, currency=currency, name=name)
    package.full_clean()
    package.save()
    save_price(PriceVersion(package=package, rate_micro=rate_micro, starts_at=starts_at), by=by)
    return package


@transaction.atomic
def retire_package(*, package: Package, by: User | None) -> list[PriceVersion]:
    """Take the package off sale and return its planned prices, which are deleted: they will never begin.

    What runs keeps the price that it has until another package of the kind has one in the location.
    """
    planned = list(package.versions.filter(starts_at__gt=Now()))
    for version in planned:
        delete_price(version, by=by)
    package.active = False
    package.save(update_fields=["active"])
    return planned


@transaction.atomic
def save_price(version: PriceVersion, *, by: User | None) -> PriceVersion:
    """Write a price that is planned, or a package's first one, with its entry in the activity log."""
    version.created_by = version.created_by or by
    version.full_clean()
    version.save()
    seal(version)
    after = {"rate_micro": version.rate_micro, "starts_at": version.starts_at}
    activity.record(action="price.set", actor=by, target=version.package, after=after)
    return version


@transaction.atomic
def delete_price(version: PriceVersion, *, by: User | None) -> None:
    """Delete a planned price; the database refuses it for one that has begun."""
    before = {"rate_micro": version.rate_micro, "starts_at": version.starts_at}
    activity.record(action="price.delete", actor=by, target=version.package, before=before)
    seal_deletion(version)
    version.delete()


def set_price(
    *, package: Package, rate_micro: int, starts_at: datetime, by: User | None, at: datetime | None = None
) -> PriceVersion:
    """Plan the price from `starts_at` on, which must be later than now. Raises Refused, ValidationError."""
    if starts_at <= (at or timezone.now()):
        raise Refused(str(PAST))
    return save_price(PriceVersion(package=package, rate_micro=rate_micro, starts_at=starts_at), by=by)
