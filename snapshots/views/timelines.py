"""The timeline on the page of a volume or machine: labels and coordinates of its drawing."""

from datetime import date, datetime, timedelta
from typing import Any

from django.db.models import Case, QuerySet, Value, When
from django.utils import timezone
from django.utils.translation import gettext as _
from django.utils.translation import ngettext

from cng_portal.common.templatetags.portal import length_of, month, near_day
from snapshots.models import Snapshot, State
from snapshots.timeline import MOST_TAKEN, Gap, Mark, timeline

STEP, HEIGHT, LEAST_HEIGHT = 10, 40, 20


def timeline_of(snapshots: QuerySet[Snapshot], *, born: datetime) -> dict[str, Any] | None:
    """Return the inputs of partials/timeline.html, or None if there are no snapshots."""
    # A damaged snapshot is shown as failed, because neither can be restored.
    state = Case(When(state=State.READY, damaged_at__isnull=False, then=Value(State.FAILED)), default="state")
    newest = snapshots.order_by("-created_at", "-pk").values_list("created_at", state)
    taken = list(newest[: MOST_TAKEN + 1])
    if not taken:
        return None
    line = timeline(taken[:MOST_TAKEN], born=born, now=timezone.now(), zone=timezone.get_current_timezone())
    marks = line.marks
    most = max(mark.ready for mark in marks)
    pictures = [
        {
            "label": label_of(mark, line.unit),
            "x": number * STEP + 1,
            "is_there": mark.is_there,
            "ready": mark.ready,
            "failed": mark.failed,
            "waiting": mark.waiting,
            "height": (height := LEAST_HEIGHT + (HEIGHT - LEAST_HEIGHT) * mark.ready // max(most, 1)),
            "y": HEIGHT - height,
        }
        for number, mark in enumerate(marks)
    ]
    return {
        "marks": pictures,
        "width": len(marks) * STEP,
        "title": title_of(line.count, more=len(taken) > MOST_TAKEN, since=marks[0].first),
        "gap": gap_of(line.gap),
        "first": near_day(marks[0].first),
        "middle": near_day(marks[len(marks) // 2].first),
        "has_failed": any(mark.failed for mark in marks),
        "has_waiting": any(mark.waiting for mark in marks),
        "unit_label": {
            "day": _("A mark is a day"),
            "week": _("A mark is a week"),
            "month": _("A mark is a month"),
        }[line.unit],
    }


def title_of(count: int, *, more: bool, since: date) -> str:
    if more:
        return _("The newest %(count)s snapshots, since %(day)s") % {"count": count, "day": near_day(since)}
    return ngettext("%(count)s snapshot since %(day)s", "%(count)s snapshots since %(day)s", count) % {
        "count": count,
        "day": near_day(since),
    }


def gap_of(gap: Gap | None) -> str:
    if gap is None:
        return _("None of them can be restored.")
    if gap.end is None and gap.length < timedelta(days=1):
        return _("The last one is less than a day old.")
    days = round(gap.length / timedelta(days=1))
    length = ngettext("%(count)s day", "%(count)s days", days) % {"count": days} if days else length_of(gap.length)
    if gap.end is None:
        return _("The longest time without one is now: %(length)s.") % {"length": length}
    return _("The longest time without one: %(length)s, from %(start)s to %(end)s.") % {
        "length": length,
        "start": near_day(timezone.localtime(gap.start).date()),
        "end": near_day(timezone.localtime(gap.end).date()),
    }


def label_of(mark: Mark, unit: str) -> str:
    """Return a label such as `3 Nov: 2 ready, 1 failed`."""
    if unit == "month":
        when = month(mark.first)
    elif unit == "week":
        when = _("%(first)s to %(last)s") % {"first": near_day(mark.first), "last": near_day(mark.last)}
    else:
        when = near_day(mark.first, "EEEE,")
    if not mark.count:
        return _("%(when)s: none") % {"when": when}
    counts = [
        (mark.ready, _("%(count)s ready")),
        (mark.failed, _("%(count)s failed or damaged")),
        (mark.waiting, _("%(count)s being taken or deleted")),
    ]
    parts = ", ".join(text % {"count": count} for count, text in counts if count)
    return _("%(when)s: %(what)s") % {"when": when, "what": parts}
