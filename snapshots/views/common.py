"""Helpers of this app's views: submitting forms, rendering lists and live pages, prices."""

import hashlib
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, TypeVar
from uuid import UUID

from django import forms
from django.contrib import messages
from django.core.exceptions import ValidationError
from django.db.models import QuerySet
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.urls import reverse
from django.utils import timezone
from django.utils.cache import patch_vary_headers
from django.utils.html import format_html
from django.utils.http import urlencode
from django.utils.safestring import SafeString
from django.utils.translation import gettext as _
from django.utils.translation import ngettext

from billing.models import ServiceKind
from billing.pricing.prices import PriceList, Quote
from cng_portal.accounts.models import User
from cng_portal.accounts.requests import Request
from cng_portal.common.money import format_amount, format_count, format_price, format_rate
from cng_portal.common.pages import Page
from cng_portal.common.responses import is_fragment, render_part
from cng_portal.inventory.models import VirtualMachine, Volume
from snapshots import checks
from snapshots.backups.automatic import automatic_backup_quote
from snapshots.errors import ActionRefused, NotSold
from snapshots.models import COUNTED_STATES, DiskImage, Kind, Operation, Snapshot, SnapshotQuerySet, State
from snapshots.wizard import wizard

T = TypeVar("T")


def submit(request: HttpRequest, form: forms.Form, action: Callable[[], T], *, field: str | None = None) -> T | None:
    """Perform the action if the form was submitted and is valid. A refusal becomes an error of the form.

    `field` is the form field that a ValidationError of the action belongs to.
    """
    if request.method != "POST" or not form.is_valid():
        return None
    try:
        return action()
    except ActionRefused as error:
        form.add_error(error.field if error.field in form.fields else None, str(error))
    except ValidationError as error:
        form.add_error(field, error)
    return None


def attempt(request: HttpRequest, action: Callable[[], T]) -> T | None:
    """Perform the action if the request is a POST. A refusal becomes a message."""
    if request.method != "POST":
        return None
    try:
        return action()
    except ActionRefused as error:
        messages.error(request, str(error))
        return None


def start_wizard(
    request: HttpRequest,
    model: type[VirtualMachine] | type[Volume],
    pk: UUID,
    slug: str,
    *,
    kind: Kind = Kind.VOLUME,
    is_scheduled: bool = False,
) -> HttpResponse:
    """Start the wizard at the step `slug` with location, project and source chosen, or return to the source's page with
    the reason why not.
    """
    visible: QuerySet[Any] = model.objects.visible_to(request.user)
    source: checks.Source = get_object_or_404(visible.select_related("project"), pk=pk)
    checks.require_change(request.user, source.project_id)
    if draft := attempt(
        request, partial(wizard.start, request.user, kind=kind, source=source, is_scheduled=is_scheduled)
    ):
        return redirect(wizard.url(draft, slug))
    return redirect("snapshots:volume" if isinstance(source, Volume) else "snapshots:machine", source.pk)


SNAPSHOT_RELATED = ("project__customer", "location", "volume__vm", "vm", "requested_by", "run__schedule")


def get_snapshot(user: User, snapshot_id: UUID) -> Snapshot:
    return get_object_or_404(Snapshot.objects.visible_to(user).select_related(*SNAPSHOT_RELATED), pk=snapshot_id)


def get_changeable(request: HttpRequest, snapshot_id: UUID, *, in_bin: bool = False) -> Snapshot:
    """Return the snapshot for an action. 404 for strangers and deleted snapshots, 403 with an explanation for viewers.

    `in_bin` also returns one in the recycle bin.
    """
    snapshot = get_snapshot(request.user, snapshot_id)
    set_section(request, snapshot)
    if snapshot.state == State.DELETED and not (in_bin and snapshot.is_in_bin):
        raise Http404
    checks.require_change(request.user, snapshot.project_id)
    return snapshot


def set_section(request: Request, subject: Snapshot | Volume, default: str = "") -> None:
    """Tell the menu which section the page belongs to, where its URL doesn't. Read by `context.frame`."""
    if isinstance(subject, Volume):
        request.section = "volumes"
    elif section := "backups" if subject.kind == Kind.BACKUP else default:
        request.section = section


def page_of(operation: Operation) -> str:
    """Return the URL of the volume that the operation is about or creates, else of its snapshot."""
    if operation.volume_id and (operation.snapshot_id is None or operation.kind == Operation.Kind.NEW_VOLUME):
        return reverse("snapshots:volume", args=[operation.volume_id])
    return reverse("snapshots:snapshot", args=[operation.snapshot_id])


def damage_of(disks: Iterable[DiskImage]) -> list[str]:
    """Return the distinct descriptions of the disks' damage."""
    return list(dict.fromkeys(disk.damage for disk in disks if disk.damage))


def push_url(request: Request, url: str) -> str:
    """Return the HX-Push-Url header: `url`, or "false" if the browser shows it already, so that history has it once."""
    return "false" if request.htmx.current_url_abs_path == url else url


def with_query(path: str, params: dict[str, str]) -> str:
    return f"{path}?{urlencode(params)}" if params else path


def render_list(
    request: HttpRequest,
    template: str,
    part: str,
    page: Page[Any],
    chosen: dict[str, str],
    context: dict[str, Any],
) -> HttpResponse:
    """Render a page of a list, or its partial `part` for htmx.

    Filter forms send every field. The address gets only those in `chosen`.
    """
    path = request.path
    here = with_query(path, chosen)
    response = render_part(
        request, template, part, context | {"page": page, "pages": page.urls(path, chosen), "here": here}
    )
    if is_fragment(request):
        cursor = {
            name: request.GET[name] for name in ("after", "before") if request.GET.get(name) and not page.is_first
        }
        response["HX-Push-Url"] = push_url(request, with_query(path, chosen | cursor))
    return response


def explain_empty(earlier: SnapshotQuerySet) -> dict[str, bool]:
    """Return whether an empty list has never had a row, and whether the recycle bin has one of them. Two queries."""
    return {"is_first": not earlier.exists(), "is_in_bin": earlier.in_bin().exists()}


def render_live(
    request: HttpRequest, template: str, context: dict[str, Any], *, part: str, poll: str, version: str
) -> HttpResponse:
    """Render a page whose partial `poll` requests the page again with `?seen=version` while operations are active.

    While the version is the same, only `poll` is sent, so that focus and open menus stay. When it has changed, the partial
    `part` is sent, whose root element has that name as its ID, with `is_news` to announce the change.
    """
    context = context | {"version": version, "poll_url": f"{request.path}?{urlencode({'seen': version})}"}
    if not is_fragment(request):
        response = render(request, template, context)
    elif request.GET.get("seen") == version:
        response = render(request, f"{template}#{poll}", context)
    else:
        response = render(request, f"{template}#{part}", context | {"is_news": "seen" in request.GET})
        response["HX-Retarget"], response["HX-Reswap"] = f"#{part}", "outerHTML"
    patch_vary_headers(response, ["HX-Request"])
    return response


def version_of(*values: object) -> str:
    """Return a hash of the values."""
    return hashlib.blake2s(repr(values).encode(), digest_size=8).hexdigest()


def price_of(snapshot: Snapshot, prices: PriceList, *, once_sound: bool = False) -> Quote | None:
    """Return what the snapshot costs from now on, None if nothing.

    Damaged snapshots cost nothing; `once_sound` is for the price after a successful verification.
    """
    is_counted = snapshot.state in COUNTED_STATES and not snapshot.costs_nothing
    if not is_counted or not snapshot.is_charged or (snapshot.is_damaged and not once_sound):
        return None
    currency, now = snapshot.project.customer.currency, timezone.now()
    return prices.quote(snapshot.service_kind, snapshot.location_id, currency, now, size_gb=snapshot.size_gb)


def price_of_new_volumes(quote: Quote | None, *, per_gb: bool = False) -> str:
    """Return a sentence on what new volumes cost together; `per_gb` if their size can still be chosen."""
    if quote is None:
        return _("Volumes in this location are free of charge.")
    sentence = (
        _(
            "A volume costs {rate} per GB and hour, from when it is available until you delete it. With {size} GB that is "
            "{hourly} an hour, about {monthly} a month."
        )
        if per_gb
        else _(
            "The volumes cost {hourly} an hour, about {monthly} a month, from when they are available until you delete them."
        )
    )
    return with_amounts(
        sentence,
        rate=format_rate(quote.rate_micro, quote.currency),
        size=format_count(quote.size_gb),
        hourly=format_price(quote.hourly_micro, quote.currency),
        monthly=format_amount(quote.monthly_micro, quote.currency),
    )


def price_of_backups(quote: Quote, count: int) -> SafeString:
    """Return a sentence on what one backup or snapshot costs, and `count` of them together."""
    if quote.kind == ServiceKind.VM_BACKUP:
        sentence = ngettext(
            "One backup costs {one} an hour, and {count} is kept.",
            "One backup costs {one} an hour; {count} backups cost {all} an hour together, about {month} a month.",
            count,
        )
    else:
        sentence = ngettext(
            "One snapshot costs {one} an hour, and {count} is kept.",
            "One snapshot costs {one} an hour; {count} snapshots cost {all} an hour together, about {month} a month.",
            count,
        )
    return with_amounts(
        sentence,
        count=str(count),
        one=format_price(quote.hourly_micro, quote.currency),
        all=format_price(count * quote.hourly_micro, quote.currency),
        month=format_amount(count * quote.monthly_micro, quote.currency),
    )


def automatic_price_sentence(vm: VirtualMachine) -> str:
    """Return the guide's sentence with the machine's own price, or why automatic backups aren't available."""
    try:
        quote = automatic_backup_quote(vm=vm)
    except NotSold as error:
        return str(error)
    return with_amounts(
        _(
            "Automatic VM backups cost 20 % of the virtual machine price: 20 % × {base} = {hourly} an hour, about {monthly} "
            "for a month of 732 hours."
        ),
        base=format_rate(quote.rate_micro, quote.currency),
        hourly=format_price(quote.hourly_micro, quote.currency),
        monthly=format_amount(quote.monthly_micro, quote.currency),
    )


def with_amounts(sentence: str, **amounts: str) -> SafeString:
    """Fill in the {amounts}, without line breaks inside them."""
    return format_html(
        sentence,
        **{name: format_html('<span class="text-nowrap">{}</span>', amount) for name, amount in amounts.items()},
    )
