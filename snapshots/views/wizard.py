"""The wizard's pages: one URL per step, the same view for the page and for the fragment that htmx swaps."""

from datetime import datetime, time, timedelta
from typing import Any
from uuid import UUID

from django.core.exceptions import PermissionDenied
from django.db.models import Count, Q
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.urls import reverse
from django.utils import timezone
from django.utils.formats import date_format
from django.utils.translation import gettext as _
from django.utils.translation import ngettext
from django.views.decorators.http import require_GET, require_POST
from django_htmx.http import HttpResponseClientRedirect

from billing import services as billing
from billing.money import format_amount, format_price
from cng_portal.accounts.models import BillingType, User
from cng_portal.inventory.models import Region, Volume
from snapshots import services, wizard
from snapshots.models import Draft

from .common import is_fragment


def new(request: HttpRequest) -> HttpResponse:
    """The first step, before there is a draft: the answer makes it, so that merely looking leaves nothing behind."""
    require_some_project(request.user)
    return answer(request, wizard.start(request.user), wizard.LocationStep)


def step(request: HttpRequest, draft_id: UUID, step: str) -> HttpResponse:
    draft = get_draft(request.user, draft_id)
    if hasattr(draft, "snapshot"):
        return leave(request, reverse("snapshots:snapshot", args=[draft.snapshot.pk]))
    steps = {step.slug: step for step in wizard.STEPS}
    if step != wizard.REVIEW and step not in steps:
        raise Http404
    if earlier := wizard.first_open_step(draft, request.user, before=step):
        return redirect(wizard.url(draft, earlier.slug))
    return review(request, draft) if step == wizard.REVIEW else answer(request, draft, steps[step])


@require_GET
def check_name(request: HttpRequest, draft_id: UUID) -> HttpResponse:
    """What is to be said about a name while it is typed."""
    draft = get_draft(request.user, draft_id)
    if wizard.first_open_step(draft, request.user, before="name"):
        raise Http404
    form = wizard.NameStep.form(draft, request.user, request.GET)
    return render(request, "snapshots/wizard/name_check.html", {"form": form, "valid": form.is_valid()})


@require_POST
def take_snapshot_of(request: HttpRequest, volume_id: UUID) -> HttpResponse:
    """The shortcut from a volume: the wizard with three answers given."""
    volume = get_object_or_404(Volume.objects.visible_to(request.user).select_related("project"), pk=volume_id)
    services.require_change(request.user, volume.project_id)
    return redirect(wizard.url(wizard.start(request.user, volume=volume), "name"))


def get_draft(user: User, draft_id: UUID) -> Draft:
    """A draft of a customer whose things this person sees; 403 for who can change none of them."""
    drafts = Draft.objects.filter(Q(project=None) | Q(project__in=list(user.roles)), customer_id__in=user.customer_ids)
    related = drafts.select_related(
        "location", "project__customer", "volume__project__customer", "volume__location", "volume__vm"
    )
    draft = get_object_or_404(related, pk=draft_id)
    require_some_project(user, draft.customer_id)
    return draft


def require_some_project(user: User, customer_id: UUID | None = None) -> None:
    changeable = [
        project_id
        for project_id, owner, _role in user.seen
        if user.can_change(project_id) and customer_id in (None, owner)
    ]
    if not changeable:
        raise PermissionDenied(
            _("Taking a snapshot needs a project that you own or are a member of. Ask an owner to give you that role.")
        )


def answer(request: HttpRequest, draft: Draft, step: type[wizard.Step]) -> HttpResponse:
    user = request.user
    if request.method == "POST":
        form = step.form(draft, user, request.POST)
        if form.is_valid():
            step.store(draft, form)
            return redirect(wizard.url(draft, wizard.next_slug(step.slug)))
    else:  # a stored answer that does not hold any more explains itself
        form = step.check(draft, user) if step.stored(draft) else step.form(draft, user)
    context = {"step": step, "form": form, **CONTEXTS[step.slug](request, draft)}
    return show(request, f"snapshots/wizard/{step.slug}.html", draft, step.slug, context)


def review(request: HttpRequest, draft: Draft) -> HttpResponse:
    assert draft.volume is not None  # first_open_step has checked every answer
    problem = None
    form = wizard.ReviewForm(request.POST or None)
    if request.method == "POST" and form.is_valid():
        try:
            snapshot = services.request_snapshot(
                volume=draft.volume,
                name=draft.name,
                user=request.user,
                draft=draft,
                shown_hourly_micro=form.cleaned_data["shown_hourly_micro"],
            )
            return leave(request, reverse("snapshots:snapshot", args=[snapshot.pk]))
        except (services.NotFree, services.SourceGone):
            # the step of that answer says the same, and it is there that it can be mended
            if earlier := wizard.first_open_step(draft, request.user, before=wizard.REVIEW):
                return redirect(wizard.url(draft, earlier.slug))
            raise
        except services.Refusal as refusal:
            problem = str(refusal)
    quote = services.quote_for(draft.volume)
    context = {"form": form, "quote": quote, "facts": facts(draft), **estimates(request, draft, quote)}
    if problem:
        context |= {"problem": problem, "problems": [{"id": "", "message": problem}]}
    return show(request, "snapshots/wizard/review.html", draft, wizard.REVIEW, context)


def estimates(request: HttpRequest, draft: Draft, quote: billing.Quote) -> dict[str, Any]:
    """What it comes to: a day, a month, until the date the person picks, and how long prepaid credits last."""
    assert draft.project is not None
    customer, now = draft.project.customer, timezone.now()

    def row(label: str, amount_micro: int) -> dict[str, str]:
        return {"label": label, "value": format_amount(amount_micro, quote.currency)}

    rows = [
        row(_("24 hours"), quote.daily_micro),
        row(_("A month of 732 hours (30.5 days)"), quote.monthly_micro),
    ]
    until = wizard.UntilForm(request.GET if "until" in request.GET else None)
    if until.is_bound and until.is_valid():
        day = until.cleaned_data["until"]
        end = datetime.combine(day + timedelta(days=1), time(), tzinfo=customer.zone)
        rows.append(row(_("From now to the end of %(day)s") % {"day": date_format(day)}, quote.until(now, end)))
    if customer.billing_type == BillingType.PREPAID:
        lasting = billing.lasts_for(customer=customer, at=now, extra_hourly_micro=quote.hourly_micro)
        for label, left in (
            (_("Your credits last with it"), lasting.then),
            (_("Your credits last without it"), lasting.now),
        ):
            end = _("for ever: nothing else uses them") if left is None else last_day(now, left)
            rows.append({"label": label, "value": end})
    return {"estimates": rows, "until": until}


def last_day(now: datetime, left: timedelta) -> str:
    try:
        return _("until %(day)s") % {"day": date_format(timezone.localtime(now + left))}
    except OverflowError:
        return _("for longer than a calendar can say")


def show(request: HttpRequest, template: str, draft: Draft, slug: str, context: dict[str, Any]) -> HttpResponse:
    saved = not draft._state.adding
    heading = context["step"].heading if "step" in context else wizard.REVIEW_HEADING
    in_error = context["form"].errors or "problem" in context
    context |= {
        "draft": draft,
        "heading": heading,
        "title": _("Error: %(heading)s") % {"heading": heading} if in_error else heading,
        "action": wizard.url(draft, slug) if saved else reverse("snapshots:new"),
        "steps": wizard.progress(draft, slug),
        "back": wizard.url(draft, wizard.previous_slug(slug)) if slug != "location" else None,
        "fragment": template,
    }
    if "quote" not in context and draft.volume and slug == "name":
        context["quote"] = services.quote_for(draft.volume)
    if quote := context.get("quote"):
        context["price"] = price(quote)
    return render(request, template if is_fragment(request) else "snapshots/wizard/page.html", context)


def leave(request: HttpRequest, url: str) -> HttpResponse:
    """Out of the wizard, to a whole page."""
    return HttpResponseClientRedirect(url) if request.htmx else redirect(url)


def price(quote: billing.Quote) -> dict[str, str]:
    return {
        "figure": format_price(quote.hourly_micro, quote.currency),
        "size": _("%(size)s GB") % {"size": quote.size_gb},
        "formula": quote.formula,
        "month": format_amount(quote.monthly_micro, quote.currency),
    }


def facts(draft: Draft) -> list[dict[str, Any]]:
    assert draft.location is not None and draft.volume is not None
    rows = [
        (_("Location"), f"{draft.location.code} · {draft.location.city}, {draft.location.country_name}", "location"),
        (_("Project"), draft.project, "project"),
        (
            _("Volume"),
            _("%(name)s · %(size)s GB") % {"name": draft.volume.name, "size": draft.volume.size_gb},
            "volume",
        ),
        (_("Attached to"), draft.volume.vm or "–", None),
        (_("Snapshot name"), draft.name, "name"),
    ]
    return [
        {"label": label, "value": value, "change_url": wizard.url(draft, slug) if slug else None}
        for label, value, slug in rows
    ]


def location_context(request: HttpRequest, draft: Draft) -> dict[str, Any]:
    locations = wizard.locations_for(request.user)
    regions = [region for region in Region.values if any(location.region == region for location in locations)]
    region = request.GET.get("region", "")
    region = region if region in regions else ""
    here = request.path
    tabs = [{"label": _("All"), "url": here, "active": not region}]
    tabs += [{"label": Region(r).label, "url": f"{here}?region={r}", "active": r == region} for r in regions]
    for location in locations:
        location.checked = location.pk == draft.location_id
        if location.rate_micro is None:
            location.reason = _("Volume snapshots are not sold here.")
        elif not location.volume_count:
            location.reason = _("You have no volume here.")
    return {"locations": [location for location in locations if region in ("", location.region)], "tabs": tabs}


def project_context(request: HttpRequest, draft: Draft) -> dict[str, Any]:
    assert draft.location is not None
    projects = list(wizard.projects_for(request.user, draft.location))
    for project in projects:
        project.value = str(project.pk)
        project.checked = project.pk == draft.project_id
        project.text = ngettext("%(count)s volume", "%(count)s volumes", project.volume_count) % {
            "count": project.volume_count
        }
        if not project.volume_count:
            project.reason = _("No volume in %(code)s.") % {"code": draft.location_id}
    return {"projects": projects}


def volume_context(request: HttpRequest, draft: Draft) -> dict[str, Any]:
    """The volumes that match the search, at most VOLUMES_SHOWN and always the chosen one, each with its price an
    hour.
    """
    assert draft.project is not None
    volumes = wizard.volumes_for(request.user, draft)
    total = volumes.aggregate(total=Count("pk"))["total"]
    query = request.GET.get("q", "").strip()
    found = volumes.filter(Q(name__icontains=query) | Q(vm__name__icontains=query)) if query else volumes
    shown = list(wizard.with_last_snapshot(found).order_by("name", "id")[: wizard.VOLUMES_SHOWN])
    if draft.volume_id and all(volume.pk != draft.volume_id for volume in shown):
        shown = [*wizard.with_last_snapshot(volumes.filter(pk=draft.volume_id)), *shown]
    rate = wizard.rate(draft)
    for volume in shown:
        volume.value = str(volume.pk)
        volume.checked = volume.pk == draft.volume_id
        volume.text = _("%(size)s GB") % {"size": volume.size_gb}
        volume.facts = [
            {"label": _("Attached to"), "value": volume.vm.name if volume.vm else "-"},
            {"label": _("Created"), "value": date(volume.created_at)},
            {"label": _("Last snapshot"), "value": date(volume.last_snapshot_at)},
        ]
        if rate is not None:
            price = format_price(rate * volume.size_gb, draft.project.customer.currency)
            volume.facts.append({"label": _("Snapshot"), "value": _("%(price)s an hour") % {"price": price}})
    return {
        "volumes": shown,
        "total": total,
        "q": query,
        "limit": wizard.VOLUMES_SHOWN,
        "quotas": [use for use in services.quota_use(draft.project) if use.is_limited],
    }


def date(instant: datetime | None) -> str:
    return date_format(timezone.localtime(instant)) if instant else "-"


def name_context(request: HttpRequest, draft: Draft) -> dict[str, Any]:
    return {}


CONTEXTS = {
    "location": location_context,
    "project": project_context,
    "volume": volume_context,
    "name": name_context,
}
