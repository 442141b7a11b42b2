"""The activity log of what a person sees: searched, filtered, page by page, and as CSV."""

from collections.abc import Iterator
from urllib.parse import urlencode
from uuid import UUID

from django.conf import settings
from django.db.models import Q, QuerySet
from django.http import HttpRequest, HttpResponse, QueryDict, StreamingHttpResponse
from django.shortcuts import render
from django.utils import timezone
from django.views.decorators.http import require_safe

from cng_portal.accounts import activity
from cng_portal.accounts.forms import ActivityFilterForm
from cng_portal.accounts.models import Activity, Project
from cng_portal.common.responses import csv_response, is_fragment, render_part

from .common import tabs

PAGE_SIZE = 50
COLUMNS = ["time", "person", "act", "kind", "thing", "id", "project", "address", "changes"]


@require_safe
def activity_log(request: HttpRequest, as_csv: bool = False) -> HttpResponse | StreamingHttpResponse:
    """Three queries besides session and person: projects, roles, rows."""
    projects = Project.objects.visible_to(request.user)
    form = ActivityFilterForm(
        request.GET,
        projects=[(str(project.pk), project.name) for project in projects],
        acts=[(act, name) for act, name in activity.ACTS.items()],
    )
    if form.opens_panel and is_fragment(request):
        return render(request, "snapshots/partials/filter_panel.html", {"form": form})
    found = narrowed(Activity.objects.visible_to(request.user), form.chosen).order_by("-at", "-id")
    if as_csv:
        return csv_of(found)
    rows, older, newer = page_of(found, request.GET)
    query = urlencode(form.chosen)
    context = {
        "form": form,
        "rows": activity.explain(rows),
        "query": query,
        "next_url": f"{request.path}?{urlencode(form.chosen | {'after': rows[-1].pk})}" if older else "",
        "previous_url": f"{request.path}?{urlencode(form.chosen | {'before': rows[0].pk})}" if newer else "",
        "first_url": f"{request.path}?{query}" if newer else "",
        "days": settings.ACTIVITY_KEPT_DAYS,
        "tabs": tabs(request),
        "is_fragment": is_fragment(request),
    }
    return render_part(request, "accounts/activity.html", "activity-list", context)


def narrowed(found: QuerySet[Activity], chosen: dict[str, str]) -> QuerySet[Activity]:
    if project := chosen.get("project"):
        found = found.filter(project_id=project)
    if act := chosen.get("act"):
        found = found.filter(act=act)
    if text := chosen.get("q"):
        found = found.filter(
            Q(thing_name__icontains=text)
            | Q(actor_name__icontains=text)
            | Q(thing_id__iexact=text)
            | Q(address__startswith=text)
        )
    return found


def page_of(found: QuerySet[Activity], params: QueryDict) -> tuple[list[Activity], bool, bool]:
    """The entries before or after the one that is named, newest first; whether there are older ones, and newer ones."""
    newest_first = found.select_related("project")
    if first := cursor(found, params.get("before", "")):
        newer = newest_first.filter(Q(at__gt=first.at) | Q(at=first.at, pk__gt=first.pk)).order_by("at", "id")
        rows = list(newer[: PAGE_SIZE + 1])
        if rows:  # else it is the newest itself, and its page is the first one
            return rows[:PAGE_SIZE][::-1], True, len(rows) > PAGE_SIZE
    last = cursor(found, params.get("after", ""))
    older = newest_first.filter(Q(at__lt=last.at) | Q(at=last.at, pk__lt=last.pk)) if last else newest_first
    rows = list(older[: PAGE_SIZE + 1])
    return rows[:PAGE_SIZE], len(rows) > PAGE_SIZE, last is not None


def cursor(found: QuerySet[Activity], text: str) -> Activity | None:
    """The row that the page follows, if it is one that the person sees."""
    try:
        return found.filter(pk=UUID(text)).first()
    except ValueError:
        return None


def csv_of(found: QuerySet[Activity]) -> StreamingHttpResponse:
    zone = timezone.get_current_timezone()  # the rows are written when the request is over

    def rows() -> Iterator[list[object]]:
        for row in found.select_related("project").iterator(chunk_size=1000):
            [row] = activity.explain([row])
            changes = "; ".join(f"{name}: {before} → {after}" for name, before, after in row.changes)
            thing = [row.thing_kind, row.thing_name, row.thing_id, str(row.project or "")]
            yield [
                row.at.astimezone(zone).isoformat(),
                str(row.who),
                str(row.label),
                *thing,
                row.address or "",
                changes,
            ]

    return csv_response("activity", COLUMNS, rows())
