"""The pages of Create Volume. wizard.py has their common parts."""

from collections.abc import Callable
from typing import Any
from uuid import UUID

from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import redirect
from django.urls import reverse
from django.utils import timezone
from django.utils.translation import gettext as _

from billing.pricing.prices import Quote
from cng_portal.accounts.models import User
from cng_portal.common.ids import parse_uuid
from cng_portal.common.money import format_count
from cng_portal.common.templatetags.portal import day as format_day
from cng_portal.inventory.models import Volume
from snapshots import limits
from snapshots.assignment import explain_new_readers
from snapshots.errors import ActionRefused
from snapshots.models import DiskImage, Draft
from snapshots.volumes import new_volumes
from snapshots.volumes import services as volume_services
from snapshots.wizard import offers, wizard
from snapshots.wizard.volume_steps import STEPS, SourceStep

from .common import is_fragment
from .wizard import (
    Choice,
    answer,
    choose,
    estimates,
    get_draft,
    leave,
    location_choices,
    project_choices,
    require_some_project,
    show,
    survives_sign_in,
    with_links,
)

# On the step of the source. The search finds the others.
SNAPSHOTS_SHOWN = 30


@survives_sign_in
def new(request: HttpRequest) -> HttpResponse:
    """Show the first step. Its answer creates the draft."""
    require_some_project(request.user)
    return answer(request, wizard.start(request.user, kind=Draft.CREATE_VOLUME), STEPS[0], location_context)


@survives_sign_in
def step(request: HttpRequest, draft_id: UUID, step: str) -> HttpResponse:
    draft = get_draft(request.user, draft_id, [Draft.CREATE_VOLUME])
    if draft.created_volume:
        return leave(request, page_of(draft.created_volume))
    steps = {step.slug: step for step in (*STEPS, SourceStep)}
    if step != wizard.REVIEW and step not in steps:
        raise Http404
    if earlier := wizard.first_open_step(draft, request.user, before="size" if step == SourceStep.slug else step):
        return redirect(wizard.url(draft, earlier.slug))
    try:
        if step == wizard.REVIEW:
            return review(request, draft)
        return answer(request, draft, steps[step], CONTEXTS[step])
    except ActionRefused:  # A valid answer has just become invalid. Its step explains it.
        return redirect(wizard.url(draft, step))


def page_of(volume: Volume) -> str:
    return f"{reverse('snapshots:volume', args=[volume.pk])}#heading"  # The heading gets the focus.


def review(request: HttpRequest, draft: Draft) -> HttpResponse:
    problem = None
    form = wizard.ReviewForm(request.POST or None)
    if request.method == "POST" and form.is_valid():
        try:
            volume = confirm(draft, request.user, form.cleaned_data["shown_hourly_micro"])
            return leave(request, page_of(volume))
        except ActionRefused as error:
            # An answer that can be corrected is explained by its step.
            if earlier := wizard.first_open_step(draft, request.user, before=wizard.REVIEW):
                return redirect(wizard.url(draft, earlier.slug))
            problem = str(error)
    assert draft.project is not None and draft.size_gb is not None  # first_open_step has checked every answer
    quote = quote_of(draft, draft.size_gb)
    context = {"form": form, "facts": facts(draft), **price_context(quote)}
    if quote:
        context |= estimates(request, draft, quote)
    if disk := draft.disk:
        # Not the volume's project: the user may not see it, and the snapshot's members read the data already.
        context["readers"] = explain_new_readers(draft.project, [disk.snapshot.project])
    if problem:
        context |= {"problem": problem, "problems": [{"id": "", "message": problem}]}
    return show(request, "snapshots/wizard/review_volume.html", draft, wizard.REVIEW, context)


def confirm(draft: Draft, user: User, shown_hourly_micro: int) -> Volume:
    """Create the draft's volume. Raises any ActionRefused."""
    assert draft.project is not None and draft.location is not None and draft.size_gb is not None
    if disk := draft.disk:
        operation = new_volumes.request_new_volume(
            snapshot=disk.snapshot,
            disk=disk,
            user=user,
            project=draft.project,
            name=draft.name,
            size_gb=draft.size_gb,
            shown_hourly_micro=shown_hourly_micro,
            draft=draft,
        )
        assert operation.volume is not None  # held by the constraint operation_target
        return operation.volume
    return volume_services.request_volume(
        project=draft.project,
        location=draft.location,
        size_gb=draft.size_gb,
        name=draft.name,
        user=user,
        shown_hourly_micro=shown_hourly_micro,
        draft=draft,
    )


def quote_of(draft: Draft, size_gb: int) -> Quote | None:
    """Return today's price, None where a volume costs nothing."""
    assert draft.project is not None and draft.location is not None  # earlier steps are checked
    return volume_services.quote_volume(draft.project, draft.location, size_gb, at=timezone.now())


def price_context(quote: Quote | None) -> dict[str, Any]:
    return {"quote": quote} if quote else {"is_free": True}


def facts(draft: Draft) -> list[dict[str, Any]]:
    location, size_gb = draft.location, draft.size_gb
    assert location is not None and size_gb is not None
    return with_links(
        draft,
        [
            (_("Location"), f"{location.code} · {location.city}, {location.country_name}", "location"),
            (_("Project"), draft.project, "project"),
            (_("Size"), _("%(size)s GB") % {"size": format_count(size_gb)}, "size"),
            (_("Source"), describe_source(draft.disk), "source"),
            (_("Volume name"), draft.name, "name"),
        ],
    )


def describe_source(disk: DiskImage | None) -> str:
    if disk is None:
        return _("None: the volume is empty")
    return _("%(snapshot)s · %(disk)s") % {"snapshot": disk.snapshot.name, "disk": disk.volume_name}


def location_context(request: HttpRequest, draft: Draft, form: wizard.StepForm) -> dict[str, Any]:
    return location_choices(request, draft, offers.offered_volume_locations(request.user))


def project_context(request: HttpRequest, draft: Draft, form: wizard.StepForm) -> dict[str, Any]:
    return project_choices(request, draft, offers.offered_volume_projects(request.user, draft))


def size_context(request: HttpRequest, draft: Draft, form: wizard.StepForm) -> dict[str, Any]:
    assert draft.project is not None
    uses = limits.volume_quota_use(draft.project)
    for cloud_project in limits.synced_cloud_projects(location=draft.location_id, project=draft.project):
        cloud = limits.cloud_quota_use(cloud_project)
        uses += [cloud["volumes"], cloud["gb"]]
    context = {
        "quotas": [use for use in uses if use.is_limited],
        "source": describe_source(draft.disk),
        "source_url": wizard.url(draft, SourceStep.slug),
        "is_preview": is_fragment(request) and "size_gb" in request.GET,
    }
    # Only an answer that is possible has a price.
    size_gb = form.cleaned_data.get("size_gb") if form.is_bound else form.initial["size_gb"]
    return context | price_context(quote_of(draft, size_gb)) if size_gb else context


def source_context(request: HttpRequest, draft: Draft, form: wizard.StepForm) -> dict[str, Any]:
    """List the disks of the newest snapshots that match the search, and always the chosen one."""
    query = request.GET.get("q", "").strip()
    snapshots = offers.offered_snapshots(request.user, draft, q=query)
    shown = list(snapshots.select_related("project").prefetch_related("disks")[:SNAPSHOTS_SHOWN])
    disks = [(disk, snapshot) for snapshot in shown for disk in snapshot.disks.all()]
    chosen = parse_uuid(request.GET.get("disk", "")) or draft.disk_id
    if draft.disk and chosen == draft.disk_id and all(disk.pk != chosen for disk, _snapshot in disks):
        disks.insert(0, (draft.disk, draft.disk.snapshot))
    choices = [
        Choice(value="", title=_("Empty volume"), text=_("It has no data. You create a file system on it.")),
        *(disk_choice(disk, snapshot) for disk, snapshot in disks),
    ]
    return {
        "choices": choose(choices, str(chosen or "")),
        "q": query,
        "is_nothing_found": bool(query) and not disks,
        "limit": SNAPSHOTS_SHOWN if len(shown) == SNAPSHOTS_SHOWN else 0,
    }


def disk_choice(disk: DiskImage, snapshot: Any) -> Choice:
    assert snapshot.ready_at is not None  # the offered ones are ready
    return Choice(
        value=str(disk.pk),
        title=snapshot.name,
        text=_("%(disk)s, %(size)s GB") % {"disk": disk.volume_name, "size": format_count(disk.size_gb)},
        facts=[
            {"label": _("Kind"), "value": snapshot.get_kind_display()},
            {"label": _("Taken"), "value": format_day(snapshot.ready_at)},
            {"label": _("Project"), "value": snapshot.project.name},
        ],
    )


def name_context(request: HttpRequest, draft: Draft, form: wizard.StepForm) -> dict[str, Any]:
    assert draft.size_gb is not None
    return price_context(quote_of(draft, draft.size_gb))


CONTEXTS: dict[str, Callable[[HttpRequest, Draft, Any], dict[str, Any]]] = {
    "location": location_context,
    "project": project_context,
    "size": size_context,
    "source": source_context,
    "name": name_context,
}
