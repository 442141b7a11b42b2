"""Many snapshots of the list deleted at once: one page that asks, and the same page with a result for each."""

from collections import Counter
from uuid import UUID

from django.contrib import messages
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.utils.translation import gettext as _
from django.utils.translation import ngettext
from django.views.decorators.http import require_http_methods

from billing import rating
from billing.prices import PriceList
from cng_portal.common.money import format_amount, format_price
from snapshots import checks, lists, services
from snapshots.forms import DeletionsForm
from snapshots.models import Kind, Snapshot

from .common import price_of
from .snapshots import LISTS, build_rows, listed_with_runs


@require_http_methods(["GET", "POST"])
def delete_many(request: HttpRequest) -> HttpResponse:
    """Of `?id=…&id=…`, so that the page can be reloaded and sent on; a constant number of queries before it is confirmed.

    One that the person does not see makes it a 404 for all, one that they may not change a 403.
    """
    user = request.user
    wanted = list(dict.fromkeys((request.POST if request.method == "POST" else request.GET).getlist("id")))
    back = list_of(request.GET.get("kind"))
    if not wanted:
        messages.warning(request, _("Nothing was selected. Select the snapshots that shall be deleted first."))
        return redirect(back)
    if len(wanted) > services.MAX_DELETIONS:
        messages.warning(
            request,
            _("Nothing was deleted: %(count)s are selected, and at most %(most)s can be deleted at once. Select fewer.")
            % {"count": len(wanted), "most": services.MAX_DELETIONS},
        )
        return redirect(back)
    keys: list[UUID] = [key for text in wanted if (key := lists.parse_uuid(text))]
    found = list(listed_with_runs().visible_to(user).filter(pk__in=keys).order_by("name_key", "pk"))
    if len(found) != len(wanted):
        raise Http404
    for project_id in {snapshot.project_id for snapshot in found}:
        checks.require_change(user, project_id)
    back = list_of(found[0].kind)
    form = DeletionsForm(request.POST or None, count=len(found), ids=wanted)
    if request.method == "POST" and form.is_valid():
        results = services.request_deletions(snapshots=found, user=user)
        for snapshot in found:
            snapshot.refusal = results[snapshot.pk]
        done = [snapshot for snapshot in found if not snapshot.refusal]
        context = {"rows": found, "done_count": len(done), "saved": savings(done), "refused": len(found) - len(done)}
        return render(request, "snapshots/deleted_many.html", context | {"back": back})
    context = {
        "rows": build_rows(found, user),
        "form": form,
        "consequences": consequences(found),
        "title": form.question,
        "back": back,
    }
    return render(request, "snapshots/delete_many.html", context)


def list_of(kind: str | None) -> str:
    """The name of the page that lists this kind."""
    return f"snapshots:{LISTS[Kind(kind)]}" if kind in Kind.values else "snapshots:volume_snapshots"


def consequences(snapshots: list[Snapshot]) -> list[str]:
    lines = [_("Their data are erased. This cannot be undone, and support cannot bring them back either.")]
    last = sum(snapshot.source.deleted_at is not None for snapshot in snapshots)
    if last:
        lines.append(
            ngettext(
                "Of %(count)s the source is gone, so this may be the last copy of its data.",
                "Of %(count)s the sources are gone, so these may be the last copies of their data.",
                last,
            )
            % {"count": last}
        )
    else:
        lines.append(_("What they were taken of, and volumes made from them, stay as they are."))
    if saved := savings(snapshots):
        lines.append(_("You stop paying %(saved)s.") % {"saved": saved})
    return lines


def savings(snapshots: list[Snapshot]) -> str:
    """`K 60 an hour, about K 43,920.00 a month`, "" for nothing. One query."""
    prices = PriceList.load({snapshot.location_id for snapshot in snapshots})
    hourly: Counter[str] = Counter()
    for snapshot in snapshots:
        if price := price_of(snapshot, prices):
            hourly[price.currency] += price.hourly_micro
    return "; ".join(
        _("%(hourly)s an hour, about %(monthly)s a month")
        % {
            "hourly": format_price(micro, currency),
            "monthly": format_amount(micro * rating.HOURS_PER_MONTH, currency),
        }
        for currency, micro in sorted(hourly.items())
    )
