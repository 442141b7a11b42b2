"""Automatic backups: the administrator's switch on a machine, its price, and the default schedule of a location.

They cost a share of the machine's hourly price while they are on, and nothing per GB. Nobody pays without having been
notified: the backups and their charge begin `NOTICE` after they are switched on.
"""

from collections.abc import Sequence
from datetime import datetime, time
from typing import Any
from uuid import UUID

from django.core.exceptions import PermissionDenied
from django.db import transaction
from django.utils import timezone
from django.utils.translation import gettext as _

from billing import errors as billing
from billing import rating
from billing.models import ServiceKind
from billing.pricing.block_storage import NOTICE
from billing.pricing.prices import PriceList, Quote, get_quote
from billing.usage import change_usage, open_segment
from cng_portal.accounts.models import User
from cng_portal.accounts.services import lock_customer
from cng_portal.inventory.models import Location, VirtualMachine

from ..checks import check_cover, check_shown_price, reload_source
from ..errors import InvalidState, NotSold, SourceUnavailable
from ..models import BackupSchedule, DeletionCause, Snapshot, SnapshotQuerySet, State, locked
from ..services import accept_deletion, uses_of
from .ending import record_switch, switch_off
from .notifications import notify_price_changed, notify_switched_on
from .occurrences import Recurrence
from .planning import set_next_run, set_next_runs
from .schedules import SCHEDULE_FIELDS, clean_schedule_fields


def automatic_backup_quote(*, vm: VirtualMachine, at: datetime | None = None) -> Quote:
    """Return what automatic backups of the machine cost.

    `rate_micro` is the machine's hourly price, `hourly_micro` 20 % of it, `monthly_micro` that for 732 hours, and
    `formula` the sentence, such as “20 % of K 45.5000 = K 9.10 an hour”. Raises NotSold where the location has no VM
    Backup package.
    """
    try:
        return get_quote(
            customer=vm.project.customer,
            location=vm.location,
            kind=ServiceKind.VM_BACKUP_AUTOMATIC,
            at=at or timezone.now(),
            base_rate_micro=vm.hourly_price_micro,
        )
    except billing.NotSold as error:
        raise NotSold(str(error)) from error


def automatic_hourly_prices(vms: Sequence[VirtualMachine], *, at: datetime) -> dict[UUID, int | None]:
    """Return {machine: price of an hour of automatic backups, in millionths}, None where not sold. One query."""
    prices, kind = PriceList.load({vm.location_id for vm in vms}), ServiceKind.VM_BACKUP_AUTOMATIC
    return {
        vm.pk: rating.hourly_micro(rate_micro=vm.hourly_price_micro, size_gb=None)
        if prices.sold_rate(kind, vm.location_id, vm.project.customer.currency, at) is not None
        else None
        for vm in vms
    }


def switch_automatic_backups(
    *, vm: VirtualMachine, on: bool, user: User, shown_hourly_micro: int | None = None, now: datetime | None = None
) -> VirtualMachine:
    """Switch the machine's automatic backups on or off, and notify its members. No-op if they are switched so already.

    On: after `NOTICE`, the machine is backed up by the location's default schedule, and charged. Off: both end, and the
    backups stay; what had not begun costs nothing. `shown_hourly_micro` is the price of automatic backups that the
    administrator confirmed. Raises SourceUnavailable, NotSold, PriceChanged, InsufficientCredit; PermissionDenied for
    anybody but an administrator.
    """
    now = now or timezone.now()
    require_administrator(user)
    with transaction.atomic():
        lock_customer(vm.project.customer_id)
        vm = reload_source(vm)
        if on and vm.automatic_backups_since is None:
            switch_on(vm, user, now, shown_hourly_micro=shown_hourly_micro)
        elif not on and vm.automatic_backups_since is not None:
            switch_off(vm, user, now)
    return vm


def switch_on(vm: VirtualMachine, user: User, now: datetime, *, shown_hourly_micro: int | None = None) -> None:
    """Create or revive the automatic schedule and plan the charge. The caller must hold the customer's lock.

    The notification is written in the same transaction, so nothing is ever charged without it.
    """
    if vm.deleted_at is not None:
        raise SourceUnavailable(_("“%(name)s” has been deleted, so there is nothing to back up.") % {"name": vm.name})
    quote = automatic_backup_quote(vm=vm, at=now)
    check_shown_price(quote, shown_hourly_micro)
    check_cover(vm.project.customer, quote.hourly_micro, at=now)
    # The earlier schedule is used again, so that retention counts and deletes its backups.
    previous = BackupSchedule.objects.filter(vm=vm, origin=BackupSchedule.Origin.AUTOMATIC).first()
    schedule = previous or BackupSchedule(vm=vm, origin=BackupSchedule.Origin.AUTOMATIC, created_at=now)
    schedule.project = vm.project
    schedule.vm, schedule.created_by, schedule.deleted_at = vm, user, None
    for name, value in default_schedule_fields(vm.location).items():
        setattr(schedule, name, value)
    switch = record_switch(vm, user, now, on=True, starts_at=now + NOTICE)
    set_next_run(schedule, now)
    schedule.save()
    segment = open_segment(
        resource_id=vm.pk,
        kind=ServiceKind.VM_BACKUP_AUTOMATIC,
        name=vm.name,
        project=vm.project,
        location=vm.location,
        at=now + NOTICE,
        base_rate_micro=vm.hourly_price_micro,
    )
    notify_switched_on(switch, segment, schedule)


def automatic_backups(vm: VirtualMachine) -> SnapshotQuerySet:
    """Return the machine's automatic backups that can be deleted, and are neither pinned nor locked."""
    return Snapshot.objects.filter(
        vm=vm,
        run__schedule__origin=BackupSchedule.Origin.AUTOMATIC,
        is_pinned=False,
        state__in=[State.READY, State.FAILED],
    ).exclude(locked())


def delete_automatic_backups(*, vm: VirtualMachine, user: User, now: datetime | None = None) -> int:
    """Delete the remaining automatic backups, except for pinned and locked ones and those in use. Returns how many.

    Raises InvalidState while automatic backups are on, and PermissionDenied for anybody but an administrator.
    """
    now = now or timezone.now()
    require_administrator(user)
    with transaction.atomic():
        lock_customer(vm.project.customer_id)
        vm = reload_source(vm)
        if vm.automatic_backups_since is not None:
            raise InvalidState(_("Automatic backups are on and manage their own backups. Switch them off first."))
        unused = [backup for backup in automatic_backups(vm) if not uses_of(backup).exists()]
        for backup in unused:
            accept_deletion(backup, at=now, cause=DeletionCause.USER, user=user)
    return len(unused)


def change_machine_price(
    *, vm: VirtualMachine, hourly_price_micro: int, user: User, now: datetime | None = None
) -> VirtualMachine:
    """Set the machine's hourly price, in millionths. Automatic backups follow from the next unpaid hour on."""
    now = now or timezone.now()
    require_administrator(user)
    with transaction.atomic():
        lock_customer(vm.project.customer_id)
        vm = reload_source(vm)
        before_micro, vm.hourly_price_micro = vm.hourly_price_micro, hourly_price_micro
        vm.save(update_fields=["hourly_price_micro"])
        if vm.automatic_backups_since is not None and hourly_price_micro != before_micro:
            segment = change_usage(
                resource_id=vm.pk,
                kind=ServiceKind.VM_BACKUP_AUTOMATIC,
                base_rate_micro=hourly_price_micro,
                at=now,
            )
            if segment is not None:
                notify_price_changed(vm, before_micro, segment)
    return vm


def change_default_schedule(
    *,
    location: Location,
    interval: str,
    weekday: int | None = None,
    month_day: int | None = None,
    at: time,
    retention_count: int,
    user: User,
    now: datetime | None = None,
) -> int:
    """Set when automatic backups in the location run and how many are kept, also for those that are already on.

    Returns how many schedules follow. Raises InvalidSchedule, and PermissionDenied for anybody but an administrator.
    """
    now = now or timezone.now()
    require_administrator(user)
    fields = clean_schedule_fields(
        interval=interval, weekday=weekday, month_day=month_day, at=at, retention_count=retention_count
    )
    recurrence = Recurrence(**{name: value for name, value in fields.items() if name != "retention_count"})
    with transaction.atomic():
        Location.objects.filter(pk=location.pk).update(**{f"default_{name}": value for name, value in fields.items()})
        automatic = BackupSchedule.objects.present().filter(
            origin=BackupSchedule.Origin.AUTOMATIC, vm__location=location
        )
        count = automatic.update(**fields)
        # A due run stays due. The scheduler continues from there by the new recurrence.
        announced = automatic.filter(vm__automatic_backups_since__gt=now)
        for schedule in announced.with_related():
            set_next_run(schedule, now)
            schedule.save(update_fields=["next_run_at", "time_zone"])
        planned = automatic.filter(next_run_at__gt=now, vm__automatic_backups_since__lte=now)
        for zone in list(planned.values_list("vm__project__customer__time_zone", flat=True).distinct().order_by()):
            set_next_runs(planned.filter(vm__project__customer__time_zone=zone), recurrence, zone, now)
    location.refresh_from_db()
    return count


def default_schedule_fields(location: Location) -> dict[str, Any]:
    return {name: getattr(location, f"default_{name}") for name in SCHEDULE_FIELDS}


def require_administrator(user: User) -> None:
    if not (user.is_staff and user.has_perm("inventory.change_virtualmachine")):
        raise PermissionDenied(
            _("Only administrators can switch automatic backups and change the prices of instances.")
        )
