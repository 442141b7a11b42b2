"""What the views of this app share."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.utils import timezone
from django.utils.cache import patch_vary_headers
from django.utils.html import format_html
from django.utils.http import urlencode
from django.utils.safestring import SafeString
from django.utils.translation import gettext as _
from django.utils.translation import ngettext

from billing.prices import PriceList, Quote
from cng_portal.accounts.models import User
from cng_portal.common.money import format_amount, format_price, format_rate
from cng_portal.common.responses import is_fragment, render_part
from cng_portal.common.templatetags.portal import length_of
from cng_portal.inventory.models import VirtualMachine
from snapshots import lists
from snapshots.backups.automatic import automatic_backup_quote
from snapshots.errors import NotSold
from snapshots.models import Operation, Snapshot, State
from snapshots.storage.registry import get_driver


def push_url(request: HttpRequest, url: str) -> str:
    """What HX-Push-Url says so that the address is `url` and Back never leads to where one is already."""
    return "false" if request.htmx.current_url_abs_path == url else url


def render_list(
    request: HttpRequest,
    template: str,
    part: str,
    page: lists.Page[Any],
    chosen: dict[str, str],
    context: dict[str, Any],
) -> HttpResponse:
    """One page of a list, or its partial `part`, with `page`, `pages` for partials/pagination.html and `here`.

    What a filter form sends has every field, the empty ones too; the address gets what is chosen.
    """
    path = request.path
    here = f"{path}?{urlencode(chosen)}" if chosen else path
    response = render_part(
        request, template, part, context | {"page": page, "pages": page.urls(path, chosen), "here": here}
    )
    if is_fragment(request):
        cursor = {
            name: request.GET[name] for name in ("after", "before") if request.GET.get(name) and not page.is_first
        }
        query = urlencode(chosen | cursor)
        response["HX-Push-Url"] = push_url(request, f"{path}?{query}" if query else path)
    return response


def render_live(
    request: HttpRequest, template: str, context: dict[str, Any], *, part: str, poll: str, version: str
) -> HttpResponse:
    """A page whose partial `poll` asks for the page again with `?seen=version` while something is going on.

    As long as only progress has moved that partial alone is sent, so that focus and open menus stay. Once the version is
    another one, so is more of the page: then the partial `part` is sent, whose root has the same word as its id, and
    `is_news` says that there is something to be announced.
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


def version_of(*facts: object) -> str:
    """A short word that changes when one of the facts does."""
    return hashlib.blake2s(repr(facts).encode(), digest_size=8).hexdigest()


# --- prices of what is there already -----------------------------------------------------------------------------------


def price_of(snapshot: Snapshot, prices: PriceList, *, once_sound: bool = False) -> Quote | None:
    """Return what the snapshot costs from now on; None where it costs nothing or has no price.

    A damaged one costs nothing; with `once_sound` this is what it will cost when it is found sound again.
    A backup has to come with its run and schedule, because automatic backups are not charged per GB.
    """
    paid = snapshot.state in (State.PENDING, State.CREATING, State.READY) and not snapshot.costs_nothing
    if not paid or not snapshot.is_charged or (snapshot.is_damaged and not once_sound):
        return None
    currency, now = snapshot.project.customer.currency, timezone.now()
    return prices.quote(snapshot.service_kind, snapshot.location_id, currency, now, size_gb=snapshot.size_gb)


def price_of_backups(quote: Quote, count: int) -> SafeString:
    """Return a sentence on what one backup costs, and `count` of them together."""
    return with_amounts(
        ngettext(
            "One backup costs {one} an hour, and {count} is kept.",
            "One backup costs {one} an hour; {count} backups cost {all} an hour together, about {month} a month.",
            count,
        ),
        count=str(count),
        one=format_price(quote.hourly_micro, quote.currency),
        all=format_price(count * quote.hourly_micro, quote.currency),
        month=format_amount(count * quote.monthly_micro, quote.currency),
    )


def automatic_price_sentence(vm: VirtualMachine) -> str:
    """Return the guide's sentence with the machine's own price, or why automatic backups aren't available."""
    try:
        quote = automatic_backup_quote(vm=vm)
    except NotSold as refusal:
        return str(refusal)
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
    """The sentence with its {amounts}, none of which is torn apart at the end of a line."""
    return format_html(
        sentence,
        **{name: format_html('<span class="text-nowrap">{}</span>', amount) for name, amount in amounts.items()},
    )


@dataclass(frozen=True)
class Action:
    """A link of a menu or a page: what can be done with a thing."""

    name: str
    label: str
    url: str
    icon: str
    danger: bool = False


# --- operations --------------------------------------------------------------------------------------------------------


def build_operation_rows(operations: Iterable[Operation], user: User) -> list[Operation]:
    """The operations, newest first, each with what this person can do about it.

    `can_cancel`, `can_retry`, `can_restore_again` and `can_undo` are set; only the newest of its kind and volume can be
    tried again. They come with what `shown_operations` joins.
    """
    explained = with_time_left(operations)
    seen = set()
    for operation in explained:
        snapshot = operation.snapshot
        key = (operation.snapshot_id, operation.kind, operation.volume_id)
        mine = user.can_change(snapshot.project_id)
        operation.can_cancel = mine and operation.can_be_cancelled
        failed = operation.state == Operation.State.FAILED and key not in seen and mine
        seen.add(key)
        allowed = RETRYABLE_IN.get(Operation.Kind(operation.kind))
        usable = operation.kind != Operation.Kind.NEW_VOLUME or operation.unchecked or not snapshot.is_damaged
        operation.can_retry = failed and snapshot.state == allowed and usable
        is_restore = operation.kind == Operation.Kind.RESTORE
        operation.can_restore_again = failed and is_restore and snapshot.state == State.READY
        safety = operation.safety_snapshot if mine and operation.can_be_undone else None
        operation.can_undo = safety is not None and not get_driver(safety.location).reverts_only_latest
    return explained


OPERATION_RELATED = ("snapshot", "volume", "vm", "safety_snapshot__location", "requested_by")
OPERATION_SHOWN = (
    *(field.name for field in Operation._meta.concrete_fields),
    *("snapshot__name", "snapshot__state", "snapshot__damaged_at"),
    *("snapshot__project", "snapshot__volume", "snapshot__vm"),
    *("safety_snapshot__name", "safety_snapshot__state", "safety_snapshot__location__driver"),
    *("safety_snapshot__location__driver_options", "volume__name", "vm__name"),
    *("requested_by__name", "requested_by__email"),
)


def shown_operations(found: QuerySet[Operation]) -> QuerySet[Operation]:
    """With what a page shows of each and of its relations, and no more; the newest first."""
    return found.select_related(*OPERATION_RELATED).only(*OPERATION_SHOWN).order_by("-created_at", "-id")


def newest_operations(*querysets: QuerySet[Operation], most: int) -> list[Operation]:
    """The newest of all of them together. One query each: joined by OR they would have no index in common."""
    newest = {operation.pk: operation for queryset in querysets for operation in shown_operations(queryset)[:most]}
    return sorted(newest.values(), key=lambda one: (one.created_at, one.pk), reverse=True)[:most]


def with_time_left(operations: Iterable[Operation]) -> list[Operation]:
    """The operations, each with `left`: how long it may still take, "" where that cannot be told."""
    now = timezone.now()
    found = list(operations)
    for operation in found:
        operation.left = time_left(operation, now)
    return found


def time_left(operation: Operation, now: datetime) -> str:
    """`About 4 minutes left`, from how far it got in how long; an attempt that began anew tells nothing."""
    if operation.state != Operation.State.RUNNING or operation.attempt != 1 or operation.started_at is None:
        return ""
    spent = now - operation.started_at
    if spent < LEAST_SPENT or not 0 < operation.bytes_done <= operation.bytes_total:
        return ""
    # The ratio comes first: a timedelta multiplied by a number of bytes overflows.
    ratio = (operation.bytes_total - operation.bytes_done) / operation.bytes_done
    if ratio > LONGEST_TIME_LEFT / spent:
        return _("More than 30 days left")
    left = spent * ratio
    if left < LEAST_SPENT:
        return _("A few seconds left")
    return _("About %(time)s left") % {"time": length_of(left, threshold=1.5)}


# Before this a speed is a guess, and less than this is soon over.
LEAST_SPENT = timedelta(seconds=5)
# An estimate beyond this says nothing about when it ends.
LONGEST_TIME_LEFT = timedelta(days=30)

# The state of the snapshot in which a failed operation can be asked for again; a restore asks for its confirmation anew.
RETRYABLE_IN = {
    Operation.Kind.CAPTURE: State.FAILED,
    Operation.Kind.NEW_VOLUME: State.READY,
    Operation.Kind.VERIFY: State.READY,
    Operation.Kind.DELETE: State.DELETING,
}
