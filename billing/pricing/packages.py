"""Create, price and retire packages: every write to packages and price versions."""

from datetime import datetime

from django.db import transaction
from django.db.models import Exists, OuterRef
from django.db.models.functions import Now
from django.utils import timezone
from django.utils.translation import gettext as _

from cng_portal.accounts.models import Customer, User
from cng_portal.activity import services as activity
from cng_portal.common import money
from cng_portal.inventory.models import Location

from ..errors import Refused
from ..models import LOWER_ONLY, PAST, InvoiceLine, Package, PriceVersion, ServiceKind, UsageSegment
from ..seals import seal, seal_deletion
from .notices import notify_corrected, notify_withdrawn


def lock_prices() -> None:
    """Lock all prices until the transaction ends."""
    list(Location.objects.order_by("pk").select_for_update(no_key=True).values_list("pk"))


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
    """Take the package off sale, delete its planned prices, and return them.

    Existing usage keeps its price until another package of the kind, location and currency has one.
    """
    planned = list(package.versions.filter(starts_at__gt=Now()))
    for version in planned:
        delete_price(version, by=by)
    package.active = False
    package.save(update_fields=["active"])
    return planned


@transaction.atomic
def save_price(version: PriceVersion, *, by: User | None) -> PriceVersion:
    """Write a planned price, or a package's first one, and log it. The scheduler announces it to customers."""
    version.created_by = version.created_by or by
    version.announced_until = None
    version.full_clean()
    version.save()
    seal(version)
    after = {"rate_micro": version.rate_micro, "starts_at": version.starts_at}
    activity.record(action="price.set", actor=by, target=version.package, after=after)
    return version


@transaction.atomic
def delete_price(version: PriceVersion, *, by: User | None) -> None:
    """Delete a planned price, and notify the customers to whom it was announced.

    The database refuses to delete one that has begun.
    """
    before = {"rate_micro": version.rate_micro, "starts_at": version.starts_at}
    activity.record(action="price.delete", actor=by, target=version.package, before=before)
    notify_withdrawn(version)
    seal_deletion(version)
    version.delete()


def set_price(
    *, package: Package, rate_micro: int, starts_at: datetime, by: User | None, at: datetime | None = None
) -> PriceVersion:
    """Plan a price from `starts_at` on, which must be later than now. Raises Refused, ValidationError."""
    if starts_at <= (at or timezone.now()):
        raise Refused(str(PAST))
    return save_price(PriceVersion(package=package, rate_micro=rate_micro, starts_at=starts_at), by=by)


@transaction.atomic
def correct_price(
    *, version: PriceVersion, rate_micro: int, reason: str, by: User | None, at: datetime | None = None
) -> PriceVersion:
    """Replace a price that has begun with a lower one, from its own start. Raises Refused, ValidationError.

    Open months are charged at the lower price at once; the next invoices credit what earlier ones overcharged.
    """
    package = version.package
    in_use = UsageSegment.objects.filter(
        kind=package.kind, location=package.location_id, customer__currency=package.currency
    )
    # No month may be closed meanwhile: its lines would be written at the price that is being corrected.
    list(Customer.objects.filter(pk__in=in_use.values("customer")).order_by("pk").select_for_update())
    if version.starts_at > (at or timezone.now()) or rate_micro >= version.rate_micro:
        raise Refused(str(LOWER_ONLY))
    if PriceVersion.objects.filter(corrects=version).exists():
        raise Refused(_("This price was already corrected. Correct the correction instead."))
    correction = PriceVersion(
        package=package,
        starts_at=version.starts_at,
        rate_micro=rate_micro,
        corrects=version,
        reason=reason.strip(),
        created_by=by,
    )
    correction.full_clean()
    correction.save()
    seal(correction)
    charged = InvoiceLine.objects.filter(segment=OuterRef("pk"), price_version=version)  # corrected to it, too
    in_use.filter(Exists(charged)).update(backdated=True)
    activity.record(
        action="price.correct",
        actor=by,
        target=package,
        before={"rate_micro": version.rate_micro, "starts_at": version.starts_at},
        after={"rate_micro": rate_micro, "reason": correction.reason},
    )
    notify_corrected(correction)
    return correction
