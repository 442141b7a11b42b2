from collections.abc import Iterator
from typing import Any
from urllib.parse import urlencode

from django.conf import settings
from django.db.models import Q, QuerySet
from django.http import HttpRequest, HttpResponse, StreamingHttpResponse
from django.shortcuts import render
from django.utils import timezone
from django.utils.translation import gettext_lazy as _
from django.views.decorators.http import require_safe

from cng_portal.common.pages import Order, page_of
from cng_portal.common.responses import csv_response, is_fragment, redirect_with_query, render_part

from .forms import ActivityFilterForm
from .models import Activity

PAGE_SIZE = 50
NEWEST = Order(_("Newest first"), "at", descending=True)
COLUMNS = ["time", "user", "action", "target_type", "target", "target_id", "project", "ip_address", "changes"]


@require_safe
def activity_log(request: HttpRequest, as_csv: bool = False) -> HttpResponse | StreamingHttpResponse:
    """List the entries that the user may see: searched, filtered, in pages or as CSV."""
    projects = request.user.projects.order_by("name")
    form = ActivityFilterForm(request.GET, projects=[(str(project.pk), project.name) for project in projects])
    if form.opens_panel and is_fragment(request):
        return render(request, "partials/filter_panel.html", {"form": form})
    entries = filter_entries(Activity.objects.visible_to(request.user), form.chosen).select_related("project")
    if as_csv and form.errors:
        return redirect_with_query(request, "activity:log")
    if as_csv:
        return export_csv(entries.order_by("-at", "-id"), request.user)
    page = page_of(entries, NEWEST, request.GET, size=PAGE_SIZE, counted=False)
    for entry in page.rows:
        entry.shown_changes = entry.changes_for(request.user)
    context = {
        "form": form,
        "page": page,
        "rows": page.rows,
        "query": urlencode(form.chosen),
        **page.urls(request.path, form.chosen),
        "days": settings.ACTIVITY_KEPT_DAYS,
        "is_fragment": is_fragment(request),
    }
    return render_part(request, "activity/log.html", "activity-list", context)


def filter_entries(entries: QuerySet[Activity], chosen: dict[str, Any]) -> QuerySet[Activity]:
    if project := chosen.get("project"):
        entries = entries.filter(project_id=project)
    if action := chosen.get("action"):
        entries = entries.filter(action=action)
    if text := chosen.get("q"):
        entries = entries.filter(
            Q(target_name__icontains=text)
            | Q(actor_name__icontains=text)
            | Q(target_id__iexact=text)
            | Q(address__startswith=text)
        )
    return entries


def export_csv(entries: QuerySet[Activity], user: Any) -> StreamingHttpResponse:
    zone = timezone.get_current_timezone()  # read here, because the rows are written after the request

    def rows() -> Iterator[list[object]]:
        for entry in entries.iterator(chunk_size=1000):
            yield [
                entry.at.astimezone(zone).isoformat(),
                entry.actor_label,
                entry.label,
                entry.target_kind,
                entry.target_name,
                entry.target_id,
                str(entry.project or ""),
                entry.address or "",
                "; ".join(f"{name}: {before} → {after}" for name, before, after in entry.changes_for(user)),
            ]

    return csv_response("activity", COLUMNS, rows())
