"""Deleting several snapshots: a confirmation page, and a page with the result of each."""

from collections import Counter
from uuid import UUID

from django.contrib import messages
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.utils import timezone
from django.utils.translation import gettext as _
from django.utils.translation import ngettext
from django.views.decorators.http import require_http_methods

from billing import rating
from billing.pricing.prices import PriceList
from cng_portal.accounts.models import User
from cng_portal.common.ids import parse_uuid
from cng_portal.common.money import format_amount, format_price
from snapshots import checks, services
from snapshots.deletion_preview import describe, preview_deletion
from snapshots.forms import DeletionsForm
from snapshots.lists import LISTS
from snapshots.locks import why_locked
from snapshots.models import Kind, Snapshot
from snapshots.recycle_bin import explain_deletion, goes_to_bin

from .common import price_of
from .rows import build_rows, listed_with_runs


@require_http_methods(["GET", "POST"])
def delete_many(request: HttpRequest) -> HttpResponse:
    """Delete the snapshots of `?id=…&id=…`. 404 if one is invisible to the user, 403 if one is read-only."""
    user = request.user
    selected = list(dict.fromkeys((request.POST if request.method == "POST" else request.GET).getlist("id")))
    back = list_of(request.GET.get("kind"))
    if not selected:
        messages.warning(request, _("Nothing was selected. Select the snapshots to delete first."))
        return redirect(back)
    if len(selected) > services.MAX_DELETIONS:
        messages.warning(
            request,
            _("Nothing was deleted: %(count)s are selected, and at most %(most)s can be deleted at once. Select fewer.")
            % {"count": len(selected), "most": services.MAX_DELETIONS},
        )
        return redirect(back)
    ids: list[UUID] = [key for text in selected if (key := parse_uuid(text))]
    snapshots = list(listed_with_runs().visible_to(user).filter(pk__in=ids).order_by("name_key", "pk"))
    if len(snapshots) != len(selected):
        raise Http404
    for project_id in {snapshot.project_id for snapshot in snapshots}:
        checks.require_change(user, project_id)
    back = list_of(snapshots[0].kind)
    preview = preview_deletion(snapshots, user=user, at=timezone.now())
    locked = {snapshot.pk for snapshot, _lock in preview.locked}
    deletable = [snapshot for snapshot in snapshots if snapshot.pk not in locked]
    if not deletable:
        messages.error(request, " ".join(why_locked(*pair) for pair in preview.locked))
        return redirect(back)
    form = DeletionsForm(
        request.POST or None,
        count=len(deletable),
        ids=[str(snapshot.pk) for snapshot in deletable],
        is_final=not any(map(goes_to_bin, deletable)),
        last_of=preview.last_of,
    )
    if request.method == "POST" and form.is_valid():
        results = services.request_deletions(snapshots=snapshots, user=user, even_if_last=form.confirms_last)
        done = [snapshot for snapshot in snapshots if not results[snapshot.pk]]
        binned = set(Snapshot.objects.in_bin().filter(pk__in=results).values_list("pk", flat=True))
        context = {
            "rows": [(snapshot, results[snapshot.pk], snapshot.pk in binned) for snapshot in snapshots],
            "done_count": len(done),
            "saved": savings(done),
            "all_binned": bool(binned) and len(binned) == len(done),
            "refused": len(snapshots) - len(done),
            "back": back,
        }
        return render(request, "snapshots/deleted_many.html", context)
    context = {
        "rows": build_rows(snapshots, user),
        "form": form,
        "consequences": consequences(deletable, user) + describe(preview, is_binned=any(map(goes_to_bin, deletable))),
        "title": form.question,
        "back": back,
    }
    return render(request, "snapshots/delete_many.html", context)


def list_of(kind: str | None) -> str:
    """Return the URL name of the list of this kind."""
    return f"snapshots:{LISTS[Kind(kind)]}" if kind in Kind.values else "snapshots:volume_snapshots"


def consequences(snapshots: list[Snapshot], user: User) -> list[str]:
    lines = explain_deletion(snapshots)
    sources = [snapshot.source for snapshot in snapshots]
    last = sum(source.deleted_at is not None and source.project_id in user.roles for source in sources)
    if last:
        lines.append(
            ngettext(
                "The source of %(count)s is gone, so this may be the last copy of its data.",
                "The sources of %(count)s are gone, so these may be the last copies of their data.",
                last,
            )
            % {"count": last}
        )
    else:
        lines.append(_("Their sources, and volumes created from them, aren't affected."))
    if saved := savings(snapshots):
        lines.append(_("You stop paying %(saved)s.") % {"saved": saved})
    return lines


def savings(snapshots: list[Snapshot]) -> str:
    """Return what they cost, such as `K 60 an hour, about K 43,920.00 a month`, or an empty string."""
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
