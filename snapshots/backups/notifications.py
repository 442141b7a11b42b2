"""Notifications about the runs of backup schedules, and about the charge of automatic backups."""

from collections.abc import Callable, Sequence
from datetime import datetime

from django.urls import reverse
from django.utils.functional import Promise
from django.utils.translation import gettext as _
from django.utils.translation import ngettext

from billing import rating
from billing.models import UsageSegment
from cng_portal.common import money
from cng_portal.common.templatetags.portal import minute
from cng_portal.inventory.models import AutomaticBackupSwitch, VirtualMachine
from cng_portal.notifications.models import Notification
from cng_portal.notifications.services import notify, project_members
from cng_portal.support.services import contact_support

from ..models import BackupRun, BackupSchedule, Kind


def notify_failed(run: BackupRun) -> None:
    def message() -> tuple[str, str]:
        is_backup = run.schedule.kind == Kind.BACKUP
        if run.next_try_at:
            title = (
                _("The backup of %(name)s failed and will be retried")
                if is_backup
                else _("The scheduled snapshot of %(name)s failed and will be retried")
            )
            then = _("It will be retried at %(time)s.") % {"time": minute(run.next_try_at)}
        else:
            title = _("The backup of %(name)s failed") if is_backup else _("The scheduled snapshot of %(name)s failed")
            then = (
                _("It was tried %(tries)s times and won't be retried: there is no backup for %(time)s.")
                if is_backup
                else _("It was tried %(tries)s times and won't be retried: there is no snapshot for %(time)s.")
            ) % {"tries": run.tries, "time": minute(run.scheduled_at)}
        return title % {"name": run.source.name}, f"{run.reason} {then}"

    notify(
        users=project_members(run.schedule.home),
        key=f"backup-run:{run.pk}:{run.tries}",
        level="warning" if run.next_try_at else "danger",
        message=message,
        url=schedule_url(run.schedule),
    )


def notify_missed(schedule: BackupSchedule, missed: Sequence[datetime], reason: str | Promise) -> None:
    def message() -> tuple[str, str]:
        if schedule.kind == Kind.BACKUP:
            title = _("Backups of %(name)s were missed")
            text = ngettext(
                "The backup of %(first)s was missed.",
                "%(count)s backups were missed, from %(first)s to %(last)s.",
                len(missed),
            )
        else:
            title = _("Scheduled snapshots of %(name)s were missed")
            text = ngettext(
                "The snapshot of %(first)s was missed.",
                "%(count)s snapshots were missed, from %(first)s to %(last)s.",
                len(missed),
            )
        text %= {"count": len(missed), "first": minute(missed[0]), "last": minute(missed[-1])}
        return title % {"name": schedule.source.name}, f"{text} {reason}"

    notify(
        users=project_members(schedule.home),
        key=f"backup-missed:{schedule.pk}:{missed[-1].isoformat()}",
        level="warning",
        message=message,
        url=schedule_url(schedule),
    )


def notify_switched_on(switch: AutomaticBackupSwitch, segment: UsageSegment, schedule: BackupSchedule) -> None:
    """Notify members when automatic backups start and what they cost. Call it in the transaction of the switch."""
    vm, first_run_at = switch.vm, schedule.next_run_at
    assert first_run_at is not None  # the schedule has just been planned

    def message() -> tuple[str, str]:
        text = _(
            "Your provider switched them on. From {time}, they cost 20 % of the instance's price: {hourly} an hour, about "
            "{monthly} for a month of 732 hours. The first backup will be taken at {first}. If you don't want them, ask "
            "your provider to switch them off before they start, and you pay nothing."
        ).format(
            **_price_of(vm, vm.hourly_price_micro),
            time=minute(segment.started_at),
            first=minute(first_run_at),
        )
        return _("Automatic backups of %(vm)s will start") % {"vm": vm.name}, text + contact_support()

    _notify_of_charge(vm, f"automatic-backups:{switch.pk}", Notification.Level.WARNING, message)


def notify_switched_off(switch: AutomaticBackupSwitch, *, had_begun: bool) -> None:
    vm = switch.vm

    def message() -> tuple[str, str]:
        title = _("Automatic backups of %(vm)s are off") % {"vm": vm.name}
        if not had_begun:
            return title, _("Your provider switched them off before they started, so they cost nothing.")
        text = _(
            "Your provider switched them off. The charge of {hourly} an hour ended at {time}; a started hour is charged in "
            "full. Existing backups stay. To keep the instance backed up, create a schedule of your own."
        ).format(**_price_of(vm, vm.hourly_price_micro), time=minute(switch.switched_at))
        return title, text

    _notify_of_charge(vm, f"automatic-backups:{switch.pk}", Notification.Level.WARNING, message)


def notify_price_changed(vm: VirtualMachine, before_micro: int, segment: UsageSegment) -> None:
    """Notify members of the new cost of automatic backups: the machine's hourly price was `before_micro`."""
    is_higher = vm.hourly_price_micro > before_micro

    def message() -> tuple[str, str]:
        text = _(
            "The price of the instance has changed. Automatic backups are 20 % of it: {hourly} an hour instead of {before}, "
            "about {monthly} for a month of 732 hours, from {time} on."
        ).format(
            **_price_of(vm, vm.hourly_price_micro),
            before=_price_of(vm, before_micro)["hourly"],
            time=minute(segment.started_at),
        )
        if is_higher:
            text += " " + _("To have them switched off, ask your provider.") + contact_support()
        return _("Automatic backups of %(vm)s have a new price") % {"vm": vm.name}, text

    level = Notification.Level.WARNING if is_higher else Notification.Level.INFO
    _notify_of_charge(vm, f"automatic-price:{segment.pk}:{vm.hourly_price_micro}", level, message)


def _price_of(vm: VirtualMachine, hourly_price_micro: int) -> dict[str, str]:
    """Return what an hour and a month of automatic backups cost at this price of the machine."""
    currency = vm.project.customer.currency
    hourly = rating.hourly_micro(rate_micro=hourly_price_micro, size_gb=None)
    monthly = rating.line_amount(
        hours=rating.HOURS_PER_MONTH,
        rate_micro=hourly_price_micro,
        size_gb=None,
        unit_micro=money.unit_micro(currency),
    )
    return {"hourly": money.format_price(hourly, currency), "monthly": money.format_amount(monthly, currency)}


def _notify_of_charge(vm: VirtualMachine, key: str, level: str, message: Callable[[], tuple[str, str]]) -> None:
    url = reverse("snapshots:machine", args=[vm.pk])
    notify(users=project_members(vm.project), key=key, level=level, message=message, url=url)


def schedule_url(schedule: BackupSchedule) -> str:
    return reverse("snapshots:schedule", args=[schedule.pk])
