"""Notifications about the runs of backup schedules."""

from collections.abc import Sequence
from datetime import datetime

from django.urls import reverse
from django.utils.functional import Promise
from django.utils.translation import gettext as _
from django.utils.translation import ngettext

from cng_portal.common.templatetags.portal import minute
from cng_portal.notifications.services import notify, project_members

from ..models import BackupRun, BackupSchedule


def notify_failed(run: BackupRun) -> None:
    def message() -> tuple[str, str]:
        if run.next_try_at:
            title = _("The backup of %(vm)s failed and will be tried again")
            then = _("It will be tried again at %(time)s.") % {"time": minute(run.next_try_at)}
        else:
            title = _("The backup of %(vm)s failed")
            then = _("It was tried %(tries)s times and will not be tried again: there is no backup of %(time)s.") % {
                "tries": run.tries,
                "time": minute(run.scheduled_at),
            }
        return title % {"vm": run.vm.name}, f"{run.reason} {then}"

    notify(
        users=project_members(run.vm.project),
        key=f"backup-run:{run.pk}:{run.tries}",
        level="warning" if run.next_try_at else "danger",
        message=message,
        url=schedule_url(run.schedule),
    )


def notify_missed(schedule: BackupSchedule, missed: Sequence[datetime], reason: str | Promise) -> None:
    def message() -> tuple[str, str]:
        text = ngettext(
            "The backup of %(first)s was missed.",
            "%(count)s backups were missed, from %(first)s to %(last)s.",
            len(missed),
        ) % {"count": len(missed), "first": minute(missed[0]), "last": minute(missed[-1])}
        return _("Backups of %(vm)s were missed") % {"vm": schedule.vm.name}, f"{text} {reason}"

    notify(
        users=project_members(schedule.vm.project),
        key=f"backup-missed:{schedule.pk}:{missed[-1].isoformat()}",
        level="warning",
        message=message,
        url=schedule_url(schedule),
    )


def schedule_url(schedule: BackupSchedule) -> str:
    return reverse("snapshots:schedule", args=[schedule.pk])
