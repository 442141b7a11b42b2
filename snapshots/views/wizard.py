"""The wizard's pages. Each step has a URL, whose view renders the page or htmx's fragment."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from datetime import datetime, time, timedelta
from functools import partial, wraps
from itertools import zip_longest
from typing import Any
from urllib.parse import urlsplit
from uuid import UUID

from django.contrib import messages
from django.contrib.auth.decorators import login_not_required
from django.contrib.auth.views import redirect_to_login
from django.core.exceptions import PermissionDenied
from django.db.models import Q
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.urls import reverse
from django.utils import timezone
from django.utils.http import urlencode
from django.utils.translation import gettext as _
from django.utils.translation import ngettext
from django.views.decorators.http import require_GET, require_POST
from django_htmx.http import HttpResponseClientRedirect

from billing.balance import credit_runway
from billing.pricing.prices import PriceList, Quote
from cng_portal.accounts.models import BillingType, User
from cng_portal.accounts.requests import Request
from cng_portal.common.ids import parse_uuid
from cng_portal.common.money import format_amount, format_count, format_price
from cng_portal.common.templatetags.portal import day as format_day
from cng_portal.inventory.models import Region, VirtualMachine, Volume
from snapshots import checks, limits, services
from snapshots.assignment import explain_new_readers
from snapshots.backups.forms import zone_name
from snapshots.backups.occurrences import occurrences_between
from snapshots.backups.preview_chart import build_preview_chart
from snapshots.backups.schedules import SCHEDULE_FIELDS, InvalidSchedule, create_schedule
from snapshots.errors import ActionRefused, NameTaken, SourceUnavailable
from snapshots.expiry import expiry_of
from snapshots.models import SERVICE_KINDS, BackupSchedule, Draft, Kind, Snapshot
from snapshots.storage.contract import Consistency
from snapshots.storage.registry import get_driver
from snapshots.wizard import offers, wizard

from .common import is_fragment, price_of_backups, start_wizard, submit


def survives_sign_in(view: Callable[..., HttpResponse]) -> Callable[..., HttpResponse]:
    """Redirect to sign-in if the session has expired. The answers are kept in `next`, to fill in the form again.

    They are posted, or sent while they are typed, by a fragment's request that checks them.
    """

    @login_not_required
    @wraps(view)
    def inner(request: Request, *args: Any, **kwargs: Any) -> HttpResponse:
        if request.user.is_authenticated:
            return view(request, *args, **kwargs)
        is_check = request.method == "GET" and is_fragment(request)
        page = urlsplit(request.htmx.current_url_abs_path or "").path if is_check else request.path
        sent = request.GET if is_check else request.POST
        answers = {name: value for name, value in sent.items() if name not in NO_ANSWERS}
        if not answers or not page:
            return redirect_to_login(request.get_full_path())
        messages.info(request, _("Your session ended. Sign in to continue. Your answers are kept."))
        return leave(request, redirect_to_login(f"{page}?{urlencode(answers)}").url)

    return inner


# Fields of the steps' forms that aren't answers.
NO_ANSWERS = {"csrfmiddlewaretoken", "form_key", "billing_cycle", "shown_hourly_micro", "preview"}


@survives_sign_in
def new(request: HttpRequest, kind: Kind = Kind.VOLUME, is_scheduled: bool = False) -> HttpResponse:
    """Show the first step. Its answer creates the draft."""
    require_some_project(request.user)
    draft = wizard.start(request.user, kind=kind, is_scheduled=is_scheduled)
    return answer(request, draft, wizard.steps_of(draft)[0])


@survives_sign_in
def step(request: HttpRequest, draft_id: UUID, step: str) -> HttpResponse:
    draft = get_draft(request.user, draft_id)
    if result := result_of(draft):
        return leave(request, page_of(result))
    steps = {step.slug: step for step in wizard.steps_of(draft)}
    if step != wizard.REVIEW and step not in steps:
        raise Http404
    if earlier := wizard.first_open_step(draft, request.user, before=step):
        return redirect(wizard.url(draft, earlier.slug))
    try:
        return review(request, draft) if step == wizard.REVIEW else answer(request, draft, steps[step])
    except ActionRefused:  # A valid answer has just become invalid. Its step explains it.
        return redirect(wizard.url(draft, step))


def result_of(draft: Draft) -> Snapshot | BackupSchedule | None:
    """Return what was created when the draft was confirmed."""
    return getattr(draft, "snapshot", None) or getattr(draft, "schedule", None)


def page_of(result: Snapshot | BackupSchedule) -> str:
    name = "schedule" if isinstance(result, BackupSchedule) else "snapshot"
    return f"{reverse(f'snapshots:{name}', args=[result.pk])}#heading"  # The heading gets the focus.


@survives_sign_in
@require_GET
def check_name(request: HttpRequest, draft_id: UUID) -> HttpResponse:
    """Validate a name while it is typed."""
    draft = get_draft(request.user, draft_id)
    if draft.makes_schedule or wizard.first_open_step(draft, request.user, before="name"):
        raise Http404
    form = wizard.NameStep.form(draft, request.user, request.GET)
    return render(request, "snapshots/wizard/name_check.html", {"form": form, "valid": form.is_valid()})


@require_POST
def take_snapshot_of(request: HttpRequest, volume_id: UUID) -> HttpResponse:
    return start_wizard(request, Volume, volume_id, "name")


DRAFT_RELATED = (
    *("location", "project__customer", "snapshot", "schedule"),
    *("volume__project__customer", "volume__location", "volume__vm", "vm__project__customer", "vm__location"),
    *("disk__snapshot__project", "disk__snapshot__location", "disk__volume__project"),
)


def get_draft(user: User, draft_id: UUID, kinds: Iterable[str] = Kind.values) -> Draft:
    """Return the draft, visible like the projects of its answers. 403 for users who can change none of them."""
    visible = Draft.objects.filter(customer_id__in=user.customer_ids, kind__in=kinds)
    for path in ("project", "volume__project", "vm__project", "disk__snapshot__project"):
        visible = visible.filter(Q(**{path: None}) | Q(**{f"{path}__in": list(user.roles)}))
    draft = get_object_or_404(visible.select_related(*DRAFT_RELATED), pk=draft_id)
    require_some_project(user, draft.customer_id)
    return draft


def require_some_project(user: User, customer_id: UUID | None = None) -> None:
    changeable = [
        project.id
        for project in user.project_roles
        if user.can_change(project.id) and customer_id in (None, project.customer_id)
    ]
    if not changeable:
        raise PermissionDenied(
            _("This needs a project that you own or are a member of. Ask an owner of a project to give you that role.")
        )


def answer(
    request: HttpRequest,
    draft: Draft,
    step: type[wizard.Step],
    build_context: Callable[[HttpRequest, Draft, Any], dict[str, Any]] | None = None,
) -> HttpResponse:
    """Show the step's form, or store its answer and go on. `build_context` adds what the template needs besides the form."""
    user = request.user
    if request.method == "POST":
        form = step.form(draft, user, request.POST)
        if "preview" not in request.POST and submit(request, form, partial(step.store, draft, form)):
            return redirect(wizard.url(draft, step.parent or wizard.next_slug(draft, step.slug)))
    elif step.field in request.GET:  # Posted after the session had expired.
        form = step.form(draft, user, request.GET)
    else:  # A stored answer that is no longer valid shows its errors.
        form = step.check(draft, user) if step.stored(draft) else step.form(draft, user)
    context = {
        "step": step,
        "form": form,
        "errors": form[step.field].errors,
        **(build_context or CONTEXTS[step.slug])(request, draft, form),
    }
    if isinstance(form, wizard.ScheduleStepForm):
        context |= schedule_context(draft, form)
    elif step.slug in ("location", "name") and not draft.makes_schedule:  # the first and the last step
        context["rate_limit_warning"] = limits.rate_limit_warning(
            draft.customer_id, wizard.operation_kind(draft), now=timezone.now()
        )
    return show(request, f"snapshots/wizard/{step.template or step.slug}.html", draft, step.slug, context)


def review(request: HttpRequest, draft: Draft) -> HttpResponse:
    source = draft.source
    assert source is not None  # first_open_step has checked every answer
    problem = None
    form = wizard.ReviewForm(request.POST or None)
    if request.method == "POST" and form.is_valid():
        try:
            result = confirm(draft, request.user, form.cleaned_data["shown_hourly_micro"])
            return leave(request, page_of(result))
        except (NameTaken, SourceUnavailable, InvalidSchedule):
            # The answer can be corrected in its step, which explains the error.
            if earlier := wizard.first_open_step(draft, request.user, before=wizard.REVIEW):
                return redirect(wizard.url(draft, earlier.slug))
            raise
        except ActionRefused as error:
            problem = str(error)
    volumes = checks.volumes_of(source)
    quote = checks.quote_size(source, sum(volume.size_gb for volume in volumes), kind=draft.kind)
    assert draft.project is not None
    context = {
        "form": form,
        "quote": quote,
        "facts": facts(draft, volumes),
        "readers": explain_new_readers(draft.project, [source.project, *(volume.project for volume in volumes)]),
        **estimates(request, draft, quote),
    }
    if draft.makes_schedule:
        zone = source.project.customer.zone
        fields = {name: getattr(draft, name) for name in SCHEDULE_FIELDS}
        context |= {
            "zone": zone_name(zone),
            "chart": build_preview_chart(fields, zone, now=timezone.now(), take_one_now=draft.take_one_now),
            "note": price_of_backups(quote, draft.retention_count),
        }
    if problem:
        context |= {"problem": problem, "problems": [{"id": "", "message": problem}]}
    template = "review_backup" if draft.makes_schedule else "review"
    return show(request, f"snapshots/wizard/{template}.html", draft, wizard.REVIEW, context)


def confirm(draft: Draft, user: User, shown_hourly_micro: int) -> Snapshot | BackupSchedule:
    """Create the draft's snapshot or schedule. Raises any ActionRefused."""
    assert draft.source is not None
    if draft.makes_schedule:
        answers = {name: getattr(draft, name) for name in wizard.ScheduleStep.answers}
        return create_schedule(
            source=draft.source,
            project=draft.project,
            user=user,
            draft=draft,
            shown_hourly_micro=shown_hourly_micro,
            **answers,
        )
    return services.request_snapshot(
        source=draft.source,
        name=draft.name,
        user=user,
        project=draft.project,
        expires_at=expiry_of_draft(draft),
        draft=draft,
        shown_hourly_micro=shown_hourly_micro,
    )


def expiry_of_draft(draft: Draft) -> datetime | None:
    assert draft.project is not None
    return expiry_of(draft.delete_after, draft.project.customer.zone) if draft.delete_after else None


def estimates(request: HttpRequest, draft: Draft, quote: Quote) -> dict[str, Any]:
    """Estimate the cost of a day, of a month and until a date, and how long prepaid credits last."""
    assert draft.project is not None
    customer, now = draft.project.customer, timezone.now()
    count = draft.retention_count if draft.makes_schedule else 1

    def row(label: str, amount_micro: int) -> dict[str, str]:
        return {"label": label, "value": format_amount(amount_micro, quote.currency)}

    if draft.makes_schedule:
        singular, plural = (
            _("One backup for a month of 732 hours (30.5 days)"),
            _("%(count)s backups for a month, once there are that many"),
        )
        if draft.kind == Kind.VOLUME:
            singular = _("One snapshot for a month of 732 hours (30.5 days)")
            plural = _("%(count)s snapshots for a month, once there are that many")
        rows = [row(singular, quote.monthly_micro), row(plural % {"count": count}, count * quote.monthly_micro)]
    else:
        rows = [
            row(_("24 hours"), quote.daily_micro),
            row(_("A month of 732 hours (30.5 days)"), quote.monthly_micro),
        ]
        if draft.delete_after and (expires_at := expiry_of_draft(draft)) and expires_at > now:
            label = _("Until it is deleted, at the end of %(day)s") % {"day": format_day(draft.delete_after)}
            rows.append(row(label, quote.cost_between(now, expires_at)))
    until = wizard.UntilForm(request.GET if "until" in request.GET else None)
    if until.is_bound and until.is_valid():
        day = until.cleaned_data["until"]
        end = datetime.combine(day + timedelta(days=1), time(), tzinfo=customer.zone)
        amount_micro = sum(quote.cost_between(first, last) for first, last in lifetimes(draft, now, end))
        rows.append(row(_("From now to the end of %(day)s") % {"day": format_day(day)}, amount_micro))
    if customer.billing_type == BillingType.PREPAID:
        runway = credit_runway(customer=customer, at=now, extra_hourly_micro=count * quote.hourly_micro)
        for label, left in (
            (_("Your credits last with it"), runway.with_new),
            (_("Your credits last without it"), runway.current),
        ):
            text = _("indefinitely: nothing else uses them") if left is None else last_day(now, left)
            rows.append({"label": label, "value": text})
    return {"estimates": rows, "until": until}


def lifetimes(draft: Draft, now: datetime, end: datetime) -> list[tuple[datetime, datetime]]:
    """Return (start, end) of the draft's snapshot, or of each that its schedule takes and deletes until `end`."""
    if not draft.makes_schedule:
        return [(now, min(end, max(now, expiry_of_draft(draft) or end)))]
    assert draft.project is not None
    recurrence = wizard.schedule_of(draft).recurrence
    taken = [now] * draft.take_one_now + occurrences_between(recurrence, draft.project.customer.zone, now, end)
    deleted = taken[draft.retention_count :]
    return list(zip_longest(taken, deleted, fillvalue=end))


def last_day(now: datetime, left: timedelta) -> str:
    try:
        return _("until %(day)s") % {"day": format_day(now + left)}
    except OverflowError:
        return _("for thousands of years")


def show(request: Request, template: str, draft: Draft, slug: str, context: dict[str, Any]) -> HttpResponse:
    saved = not draft._state.adding
    is_backup = draft.kind == Kind.BACKUP
    if "step" in context:
        heading = context["step"].heading
    elif is_backup:
        heading = _("Create Backup")
    elif draft.creates_volume:
        heading = _("Create Volume")
    else:
        heading = _("Schedule Snapshots") if draft.is_scheduled else _("Create Snapshot")
    parent = context["step"].parent if "step" in context else ""
    in_error = context["form"].errors or "problem" in context
    context |= {
        "draft": draft,
        "heading": heading,
        "title": _("Error: %(heading)s") % {"heading": heading} if in_error else heading,
        "action": wizard.url(draft, slug) if saved else request.path,
        "steps": wizard.progress(draft, parent or slug),
        "back": wizard.url(draft, parent or wizard.previous_slug(draft, slug)) if slug != "location" else None,
        "fragment": template,
    }
    if slug in ("volume", "name") and draft.source and not context["form"].errors:
        context["quote"] = quote_of(draft)
    if quote := context.get("quote"):
        context["price"] = price(quote)
    if is_backup:
        request.section = "backups"
    return render(request, template if is_fragment(request) else "snapshots/wizard/page.html", context)


def leave(request: Request, url: str) -> HttpResponse:
    """Leave the wizard for a whole page."""
    return HttpResponseClientRedirect(url) if request.htmx else redirect(url)


def quote_of(draft: Draft) -> Quote:
    """Raises NotSold."""
    assert draft.source is not None  # earlier steps are checked
    return checks.quote_for(draft.source, kind=draft.kind)


def price(quote: Quote) -> dict[str, str]:
    return {
        "figure": format_price(quote.hourly_micro, quote.currency),
        "size": _("%(size)s GB") % {"size": format_count(quote.size_gb)},
        "formula": quote.formula,
        "month": format_amount(quote.monthly_micro, quote.currency),
    }


def facts(draft: Draft, volumes: list[Volume]) -> list[dict[str, Any]]:
    location, source = draft.location, draft.source
    assert location is not None and source is not None
    rows: list[tuple[str, object, str | None]] = [
        (_("Location"), f"{location.code} · {location.city}, {location.country_name}", "location"),
        (_("Project"), draft.project, "project"),
    ]
    if isinstance(source, Volume):
        size = format_count(source.size_gb)
        rows.append((_("Volume"), _("%(name)s · %(size)s GB") % {"name": source.name, "size": size}, "volume"))
        rows.append((_("Attached to"), source.vm or "–", None))
    else:
        rows.append((_("Instance"), source.name, "instance"))
    if source.project_id != draft.project_id:
        label = _("Volume's project") if isinstance(source, Volume) else _("Instance's project")
        rows.append((label, source.project, None))
    if isinstance(source, VirtualMachine):
        rows.append(
            (_("Disks"), ", ".join(f"{volume.name} ({format_count(volume.size_gb)} GB)" for volume in volumes), None)
        )
        rows.append((_("Consistency"), consistency_of(source), None))
    if draft.makes_schedule:
        rows += schedule_facts(draft)
    else:
        rows.append((_("Snapshot name"), draft.name, "name"))
        kept = format_day(draft.delete_after) if draft.delete_after else _("never; it stays until you delete it")
        rows.append((_("Delete after"), kept, "name"))
    return with_links(draft, rows)


def with_links(draft: Draft, rows: list[tuple[str, object, str | None]]) -> list[dict[str, Any]]:
    """Return (label, value, slug of its step) as facts that link to their step."""
    return [
        {"label": label, "value": value, "change_url": wizard.url(draft, slug) if slug else None}
        for label, value, slug in rows
    ]


def schedule_facts(draft: Draft) -> list[tuple[str, object, str | None]]:
    assert draft.project is not None
    schedule, zone = wizard.schedule_of(draft), draft.project.customer.zone
    when = _("%(when)s, %(zone)s") % {"when": schedule.when, "zone": zone_name(zone)}
    count = draft.retention_count
    if draft.kind == Kind.BACKUP:
        retention = ngettext("%(count)s backup", "%(count)s backups", count)
    else:
        retention = ngettext("%(count)s snapshot", "%(count)s snapshots", count)
    return [
        (_("Schedule"), when, "schedule"),
        (_("Keeps"), retention % {"count": count}, "schedule"),
        (_("Take one immediately"), _("Yes") if draft.take_one_now else _("No"), "schedule"),
    ]


def consistency_of(vm: VirtualMachine) -> str:
    """Describe how consistent several disks are in the location's storage."""
    if get_driver(vm.location).consistency == Consistency.INSTANT:
        return _("All disks at one instant, as after a sudden power cut")
    return _("Crash-consistent per disk: the disks are captured one after the other")


@dataclass(frozen=True)
class Choice:
    """A card: `text` is its second line, `reason` why it can't be chosen."""

    value: str
    title: str
    text: str = ""
    reason: str = ""
    is_checked: bool = False
    country: str = ""
    flag: str = ""
    facts: list[dict[str, str]] = field(default_factory=list)


@dataclass(frozen=True)
class ChoiceGroup:
    """The volumes or instances of one project."""

    project_name: str
    choices: list[Choice]


def choose(choices: list[Choice], chosen: str) -> list[Choice]:
    """Check the chosen card, or the only possible one."""
    possible = [choice.value for choice in choices if not choice.reason]
    if not chosen and len(possible) == 1:
        chosen = possible[0]
    return [replace(choice, is_checked=choice.value == chosen) for choice in choices]


def location_context(request: HttpRequest, draft: Draft, form: wizard.LocationForm) -> dict[str, Any]:
    query = request.GET.get("q", "").strip()
    return location_choices(request, draft, form.offers) | {
        "q": query,
        "hits": offers.find_sources(request.user, draft.kind, query) if query else [],
        "search_label": wizard.SOURCE_STEPS[Kind(draft.kind)].search_label,
    }


def location_choices(request: HttpRequest, draft: Draft, offered: list[offers.LocationOffer]) -> dict[str, Any]:
    """Return the cards of the locations, and the tabs of their regions."""
    present = {offer.location.region for offer in offered}
    regions = [region for region in Region.values if region in present]
    wanted = request.GET.get("region", "")
    region = wanted if wanted in regions else ""
    here = request.path
    tabs = [{"label": _("All"), "url": here, "active": not region}]
    tabs += [{"label": Region(r).label, "url": f"{here}?region={r}", "active": r == region} for r in regions]
    choices = choose(
        [
            Choice(
                value=offer.location.code,
                title=offer.location.code,
                text=f"{offer.location.city}, {offer.location.country_name}",
                reason=offer.reason,
                country=offer.location.country,
                flag=offer.location.flag,
                facts=[{"label": _("A volume"), "value": offer.price}] if offer.price and not offer.reason else [],
            )
            for offer in offered
        ],
        request.GET.get("location") or draft.location_id or "",
    )
    in_region = {offer.location.code for offer in offered if region in ("", offer.location.region)}
    return {
        "choices": [choice for choice in choices if choice.value in in_region],
        "tabs": tabs if len(regions) > 1 else [],
        "filters": {"left_out": [_("Region")] if wanted != region else []},
    }


def project_context(request: HttpRequest, draft: Draft, form: wizard.ProjectForm) -> dict[str, Any]:
    return project_choices(request, draft, form.offers)


def project_choices(request: HttpRequest, draft: Draft, offered: list[offers.ProjectOffer]) -> dict[str, Any]:
    """Return the cards of the projects."""
    customers = {offer.project.customer_id for offer in offered}
    choices = [
        Choice(
            value=str(offer.project.pk),
            title=offer.project.name,
            text=count_sources(draft.kind, offer.source_count),
            reason=offer.reason,
            facts=[{"label": _("Account"), "value": offer.project.customer.name}] if len(customers) > 1 else [],
        )
        for offer in offered
    ]
    return {"choices": choose(choices, request.GET.get("project") or str(draft.project_id or ""))}


def count_sources(kind: str, count: int) -> str:
    is_of_volumes = kind in (Kind.VOLUME, Draft.CREATE_VOLUME)
    if not count:
        return _("No volumes here") if is_of_volumes else _("No instances here")
    if is_of_volumes:
        text = ngettext("%(count)s volume here", "%(count)s volumes here", count)
    else:
        text = ngettext("%(count)s instance here", "%(count)s instances here", count)
    return text % {"count": count}


def source_context(request: HttpRequest, draft: Draft, form: wizard.SourceForm) -> dict[str, Any]:
    """List the volumes or instances that match the search, at most SOURCES_SHOWN, and always the chosen one."""
    assert draft.location_id is not None and draft.project is not None  # earlier steps are checked
    user, kind = request.user, draft.kind
    query = request.GET.get("q", "").strip()
    offered = offers.first_sources(user, draft, q=query)
    chosen = parse_uuid(request.GET.get(form.field, "")) or draft.volume_id or draft.vm_id
    if not chosen and not query and len(offered) == 1:
        chosen = offered[0].source.pk
    if chosen and all(offer.source.pk != chosen for offer in offered):
        offered = [*offers.first_sources(user, draft, pk=chosen), *offered]
    uses = limits.snapshot_quota_use(draft.project)
    # Snapshots stay in the cloud project of their volume, whose quota may be another one than that of the chosen project.
    refs = {disk.backend_project for offer in offered for disk in offer.disks if disk.backend_project}
    clouds = limits.synced_cloud_projects(location=draft.location_id)
    for cloud_project in clouds.filter(Q(project=draft.project) | Q(external_id__in=refs)).order_by("name", "pk"):
        cloud = limits.cloud_quota_use(cloud_project)
        uses += [cloud["snapshots"], cloud["gb"]]
    prices, currency, now = PriceList.load([draft.location_id]), draft.project.customer.currency, timezone.now()
    groups = {draft.project_id: ChoiceGroup(draft.project.name, [])}
    for offer in offered:
        quote = prices.quote(SERVICE_KINDS[Kind(kind)], draft.location_id, currency, now, size_gb=offer.size_gb)
        choice = Choice(
            value=str(offer.source.pk),
            title=offer.source.name,
            text=_("%(size)s GB") % {"size": format_count(offer.size_gb)},
            facts=source_facts(offer, quote if offer.size_gb else None, kind),
            is_checked=offer.source.pk == chosen,
        )
        project = offer.source.project
        groups.setdefault(project.pk, ChoiceGroup(project.name, [])).choices.append(choice)
    has_others, own = len(groups) > 1, groups[draft.project_id]
    if query and not own.choices:
        del groups[draft.project_id]
    return {
        "groups": list(groups.values()),
        "has_others": has_others,
        "nothing_own": nothing_own(draft) % {"project": own.project_name},
        "shown_count": len(offered),
        "total": len(offered)
        if not query and len(offered) < offers.SOURCES_SHOWN
        else offers.offered_sources(user, draft).count(),
        "q": query,
        "limit": offers.SOURCES_SHOWN,
        "quotas": [use for use in uses if use.is_limited],
    }


def nothing_own(draft: Draft) -> str:
    if draft.makes_schedule:
        return _(
            "“%(project)s” has none here. Choose one of another project: the backups or snapshots of the "
            "schedule will belong to “%(project)s”."
        )
    if draft.kind == Kind.VOLUME:
        return _(
            "“%(project)s” has no volume here. Choose one of another project: the snapshot will belong to "
            "“%(project)s”."
        )
    return _(
        "“%(project)s” has no instance here. Choose one of another project: the snapshot will belong to “%(project)s”."
    )


def source_facts(offer: offers.SourceOffer, quote: Quote | None, kind: str) -> list[dict[str, str]]:
    source = offer.source
    if isinstance(source, Volume):
        facts = [{"label": _("Attached to"), "value": source.vm.name if source.vm else "–"}]
    else:
        disks = ", ".join(disk.name for disk in offer.disks)
        facts = [{"label": _("Disks"), "value": disks or _("none, so there is nothing to capture")}]
    facts += [
        {"label": _("Created"), "value": date(source.created_at)},
        {"label": _("Last snapshot"), "value": date(offer.last_snapshot_at)},
    ]
    if quote:
        label = _("One backup") if kind == Kind.BACKUP else _("Snapshot")
        price = format_price(quote.hourly_micro, quote.currency)
        facts.append({"label": label, "value": _("%(price)s an hour") % {"price": price}})
    return facts


def date(instant: datetime | None) -> str:
    return format_day(instant) if instant else "–"


def schedule_context(draft: Draft, form: wizard.ScheduleStepForm) -> dict[str, Any]:
    """Return the preview of the schedule, as far as the form is valid."""
    quote = quote_of(draft)
    context: dict[str, Any] = {"quote": quote, "zone": zone_name(form.zone)}
    if fields := form.schedule_fields:
        chart = build_preview_chart(fields, form.zone, now=timezone.now(), take_one_now=form.takes_one_now)
        context |= {"chart": chart, "price_note": price_of_backups(quote, fields["retention_count"])}
    return context


def no_context(request: HttpRequest, draft: Draft, form: wizard.StepForm) -> dict[str, Any]:
    return {}


CONTEXTS: dict[str, Callable[[HttpRequest, Draft, Any], dict[str, Any]]] = {
    "location": location_context,
    "project": project_context,
    "volume": source_context,
    "instance": source_context,
    "name": no_context,
    "schedule": no_context,
}
