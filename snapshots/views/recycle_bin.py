"""The recycle bin: its list, putting back, and deleting for good."""

from dataclasses import dataclass
from uuid import UUID

from django.contrib import messages
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.utils import timezone
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy, ngettext
from django.views.decorators.http import require_GET, require_http_methods

from cng_portal.accounts.submissions import submit_once
from cng_portal.common.money import format_amount, format_price
from cng_portal.common.pages import Order, page_of
from cng_portal.common.responses import is_fragment
from snapshots import checks, recycle_bin
from snapshots.errors import NameTaken
from snapshots.forms import BinFilterForm, ConfirmationForm, PutBackForm
from snapshots.models import Snapshot

from .common import get_snapshot, render_list, submit

ORDER = Order(gettext_lazy("Erased next first"), "bin_until")


@dataclass(frozen=True)
class BinRow:
    snapshot: Snapshot
    can_change: bool
    can_see_source: bool


@require_GET
def listing(request: HttpRequest) -> HttpResponse:
    user = request.user
    form = BinFilterForm(request.GET, user=user)
    if form.opens_panel and is_fragment(request):
        return render(request, "partials/filter_panel.html", {"form": form})
    visible = Snapshot.objects.visible_to(user).in_bin().select_related("project", "location", "volume", "vm")
    page = page_of(form.narrow(visible), ORDER, request.GET)
    rows = [
        BinRow(snapshot, user.can_change(snapshot.project_id), snapshot.source.project_id in user.roles)
        for snapshot in page.rows
    ]
    customer = user.customer
    days = recycle_bin.bin_days(customer) if customer else 0
    context = {"form": form, "rows": rows, "days": days}
    return render_list(request, "snapshots/recycle_bin/list.html", "bin-list", page, form.chosen, context)


def get_binned(request: HttpRequest, snapshot_id: UUID) -> Snapshot | None:
    """Return the snapshot for an action, None if it has left the recycle bin. 404 for strangers, 403 for viewers."""
    snapshot = get_snapshot(request.user, snapshot_id)
    checks.require_change(request.user, snapshot.project_id)
    if snapshot.is_in_bin:
        return snapshot
    messages.info(request, _("“%(name)s” is no longer in the recycle bin.") % {"name": snapshot.name})
    return None


@require_http_methods(["GET", "POST"])
@submit_once
def put_back(request: HttpRequest, snapshot_id: UUID) -> HttpResponse:
    """Say what the hours since the deletion cost, and put the snapshot back under its name or a free one."""
    snapshot = get_binned(request, snapshot_id)
    if snapshot is None:
        return redirect("snapshots:snapshot", snapshot_id)
    price = recycle_bin.quote_put_back(snapshot, at=timezone.now())
    name = checks.free_name(snapshot.customer_id, snapshot.name)
    data = request.POST.copy() if request.method == "POST" else None
    if data and (suggestion := data.get("use")):  # The button with the free name.
        data["name"] = suggestion
    form = PutBackForm(data, initial={"name": name, "shown_micro": price.gap_micro if price else 0})

    def save() -> Snapshot:
        try:
            return recycle_bin.put_back(snapshot=snapshot, user=request.user, **form.cleaned_data)
        except NameTaken as error:
            form.suggestion = error.suggestion
            raise

    if returned := submit(request, form, save):
        messages.success(request, _("“%(name)s” is back.") % {"name": returned.name})
        return redirect("snapshots:snapshot", snapshot.pk)
    if data:  # The next submission confirms the price that this page shows.
        data["shown_micro"] = str(price.gap_micro if price else 0)
    context = {
        "snapshot": snapshot,
        "form": form,
        "is_taken": name != snapshot.name,
        "consequences": put_back_consequences(snapshot, price),
    }
    return render(request, "snapshots/recycle_bin/put_back.html", context)


def put_back_consequences(snapshot: Snapshot, price: recycle_bin.PutBackPrice | None) -> list[str]:
    lines = []
    if price is None:
        lines.append(_("It costs nothing."))
    else:
        currency = price.quote.currency
        if price.gap_hours:
            lines.append(
                ngettext(
                    "%(amount)s is charged for the %(hours)s hour since its deletion, as if it had never been deleted.",
                    "%(amount)s is charged for the %(hours)s hours since its deletion, as if it had never been deleted.",
                    price.gap_hours,
                )
                % {"amount": format_amount(price.gap_micro, currency), "hours": price.gap_hours}
            )
        else:
            lines.append(_("Nothing is charged for the time since its deletion, because that hour is paid already."))
        lines.append(
            _("From now on it costs %(hourly)s an hour, about %(monthly)s a month.")
            % {
                "hourly": format_price(price.quote.hourly_micro, currency),
                "monthly": format_amount(price.quote.monthly_micro, currency),
            }
        )
    if snapshot.is_scheduled and not snapshot.is_pinned:
        lines.append(_("It is pinned, so that its schedule doesn't delete it again. You can unpin it later."))
    if snapshot.expires_at and snapshot.expires_at <= timezone.now():
        lines.append(_("Its expiry date has passed, so it is removed. It stays until you delete it."))
    return lines


@require_http_methods(["GET", "POST"])
@submit_once
def erase(request: HttpRequest, snapshot_id: UUID) -> HttpResponse:
    snapshot = get_binned(request, snapshot_id)
    if snapshot is None:
        return redirect("snapshots:snapshot", snapshot_id)
    form = ConfirmationForm(
        request.POST or None,
        label=_("Type its name, %(name)s, to confirm") % {"name": snapshot.name},
        required=_("Type the name “%(name)s” to delete it for good.") % {"name": snapshot.name},
    )
    if submit(
        request,
        form,
        lambda: recycle_bin.erase(snapshot=snapshot, user=request.user, **form.cleaned_data),
        field="confirmation",
    ):
        messages.success(request, _("“%(name)s” is being erased.") % {"name": snapshot.name})
        return redirect("snapshots:recycle_bin")
    consequences = [
        _("Its data is erased now. This can't be undone, not even by support."),
        _("It costs nothing already, so this saves nothing. It frees %(size)s GB of your quota.")
        % {"size": snapshot.size_gb},
    ]
    context = {"snapshot": snapshot, "form": form, "consequences": consequences}
    return render(request, "snapshots/recycle_bin/erase.html", context)
