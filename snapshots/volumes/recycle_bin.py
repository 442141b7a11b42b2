"""Put volumes in the recycle bin and back. `snapshots.recycle_bin` erases them.

One in it is Deleting, and has `deleted_at`, `bin_until` and no operation. When it is erased, it loses both and is like any
volume whose deletion was accepted.
"""

from datetime import datetime, timedelta

from django.db import transaction
from django.utils import timezone
from django.utils.translation import gettext as _

from billing.models import ServiceKind
from billing.usage import charge_gap
from cng_portal.accounts.models import User
from cng_portal.accounts.services import lock_customer
from cng_portal.activity import services as activity
from cng_portal.inventory.models import Volume

from .. import checks, limits
from ..errors import InvalidState
from ..recycle_bin import PutBackPrice, bin_days, check_price, name_of_gap, quote_resumed


def put_in_bin(volume: Volume, *, at: datetime, user: User) -> None:
    """Put an Available volume in the recycle bin. The caller must hold the customer's lock, and ends the charge."""
    until = at + timedelta(days=bin_days(volume.project.customer))
    available = Volume.objects.filter(pk=volume.pk, state=Volume.State.AVAILABLE, delete_requested_at=None)
    available.update(state=Volume.State.DELETING, delete_requested_at=at, deleted_at=at, bin_until=until)
    activity.record(action="volume.bin", actor=user, target=volume, after={"bin_until": until})


def quote_put_back(volume: Volume, *, at: datetime) -> PutBackPrice | None:
    """Return what putting it back costs, None if nothing."""
    return quote_resumed(resource_id=volume.pk, kind=ServiceKind.BLOCK_STORAGE, at=at)


def put_back(*, volume: Volume, user: User, shown_micro: int | None = None) -> Volume:
    """Make a volume in the recycle bin Available again. Its schedules, which ended with the deletion, stay ended.

    `shown_micro` is what the user saw that the hours since the deletion cost. Raises InvalidState, PriceChanged,
    QuotaExceeded, InsufficientCredit.
    """
    with transaction.atomic():
        lock_customer(volume.customer_id)
        volume, at = checks.reload_source(volume), timezone.now()
        checks.require_change(User.objects.get(pk=user.pk), volume.project_id)
        if not volume.is_in_bin:
            raise InvalidState(
                _("“%(name)s” is no longer in the recycle bin, so it can't be put back.") % {"name": volume.name}
            )
        limits.check_returned_volume_quota(volume.project)
        price = quote_put_back(volume, at=at)
        check_price(price, volume.project.customer, shown_micro, at)
        binned = Volume.objects.in_bin().filter(pk=volume.pk)
        binned.update(state=Volume.State.AVAILABLE, delete_requested_at=None, deleted_at=None, bin_until=None)
        if price:
            charge_gap(
                resource_id=volume.pk,
                kind=ServiceKind.BLOCK_STORAGE,
                name=volume.name,
                gap_name=name_of_gap(volume.name),
                project=volume.project,
                location=volume.location,
                size_gb=volume.size_gb,
                at=at,
            )
        volume.refresh_from_db()
        activity.record(action="volume.put_back", actor=user, target=volume)
    return volume
