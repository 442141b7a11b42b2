"""The recycle bin: its list, putting back, and deleting for good."""

from dataclasses import dataclass
from functools import partial
from uuid import UUID

from django.contrib import messages
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.urls import reverse
from django.utils import timezone
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy, ngettext
from django.views.decorators.http import require_GET, require_http_methods

from cng_portal.accounts.models import User
from cng_portal.accounts.submissions import submit_once
from cng_portal.common.money import format_amount, format_price
from cng_portal.common.pages import Order, page_of
from cng_portal.common.responses import is_fragment
from cng_portal.inventory.models import Volume
from snapshots import checks, recycle_bin
from snapshots.errors import NameTaken
from snapshots.forms import BinFilterForm, ConfirmationForm, PutBackForm, ShownPriceForm
from snapshots.models import BackupSchedule, Snapshot
from snapshots.volumes import recycle_bin as volume_bin

from .common import get_snapshot, render_list, submit
from .volume_actions import get_volume

ORDER = Order(gettext_lazy("Erased next first"), "bin_until")


@dataclass(frozen=True)
class BinRow:
    snapshot: Snapshot
    can_change: bool
    can_see_source: bool


@dataclass(frozen=True)
class VolumeInBin:
    volume: Volume
    can_change: bool


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
    context = {"form": form, "rows": rows, "days": days_of(user), "tabs": tabs("snapshots:recycle_bin")}
    return render_list(request, "snapshots/recycle_bin/list.html", "bin-list", page, form.chosen, context)


@require_GET
def volumes(request: HttpRequest) -> HttpResponse:
    user = request.user
    form = BinFilterForm(request.GET, user=user)
    if form.opens_panel and is_fragment(request):
        return render(request, "partials/filter_panel.html", {"form": form})
    visible = Volume.objects.visible_to(user).in_bin().select_related("project", "location")
    page = page_of(form.narrow(visible), ORDER, request.GET)
    rows = [VolumeInBin(volume, user.can_change(volume.project_id)) for volume in page.rows]
    context = {"form": form, "rows": rows, "days": days_of(user), "tabs": tabs("snapshots:volumes_in_bin")}
    return render_list(request, "snapshots/recycle_bin/volumes.html", "bin-list", page, form.chosen, context)


def tabs(active: str) -> list[dict[str, object]]:
    pages = [
        ("snapshots:recycle_bin", _("Snapshots and backups")),
        ("snapshots:volumes_in_bin", _("Volumes")),
    ]
    return [{"label": label, "url": reverse(name), "active": name == active} for name, label in pages]


def days_of(user: User) -> int:
    return recycle_bin.bin_days(user.customer) if user.customer else 0


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


def explain_price(price: recycle_bin.PutBackPrice | None) -> list[str]:
    if price is None:
        return [_("It costs nothing.")]
    currency = price.quote.currency
    gap = (
        ngettext(
            "%(amount)s is charged for the %(hours)s hour since its deletion, as if it had never been deleted.",
            "%(amount)s is charged for the %(hours)s hours since its deletion, as if it had never been deleted.",
            price.gap_hours,
        )
        % {"amount": format_amount(price.gap_micro, currency), "hours": price.gap_hours}
        if price.gap_hours
        else _("Nothing is charged for the time since its deletion, because that hour is paid already.")
    )
    future = _("From now on it costs %(hourly)s an hour, about %(monthly)s a month.") % {
        "hourly": format_price(price.quote.hourly_micro, currency),
        "monthly": format_amount(price.quote.monthly_micro, currency),
    }
    return [gap, future]


def put_back_consequences(snapshot: Snapshot, price: recycle_bin.PutBackPrice | None) -> list[str]:
    lines = explain_price(price)
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
    form = erase_form(request, snapshot.name)
    save = partial(recycle_bin.erase, snapshot=snapshot, user=request.user)
    if submit(request, form, lambda: save(**form.cleaned_data), field="confirmation"):
        messages.success(request, _("“%(name)s” is being erased.") % {"name": snapshot.name})
        return redirect("snapshots:recycle_bin")
    context = {"snapshot": snapshot, "form": form, "consequences": erase_consequences(snapshot.size_gb)}
    return render(request, "snapshots/recycle_bin/erase.html", context)


def erase_form(request: HttpRequest, name: str) -> ConfirmationForm:
    return ConfirmationForm(
        request.POST or None,
        label=_("Type its name, %(name)s, to confirm") % {"name": name},
        required=_("Type the name “%(name)s” to delete it for good.") % {"name": name},
    )


def erase_consequences(size_gb: int) -> list[str]:
    return [
        _("Its data is erased now. This can't be undone, not even by support."),
        _("It costs nothing already, so this saves nothing. It frees %(size)s GB of your quota.") % {"size": size_gb},
    ]


# --- volumes ---------------------------------------------------------------------------------------------------------


def get_binned_volume(request: HttpRequest, volume_id: UUID) -> Volume | None:
    """Return the volume for an action, None if it has left the recycle bin. 404 for strangers, 403 for viewers."""
    volume = get_volume(request.user, volume_id)
    checks.require_change(request.user, volume.project_id)
    if volume.is_in_bin:
        return volume
    messages.info(request, _("“%(name)s” is no longer in the recycle bin.") % {"name": volume.name})
    return None


@require_http_methods(["GET", "POST"])
@submit_once
def put_back_volume(request: HttpRequest, volume_id: UUID) -> HttpResponse:
    """Say what the hours since the deletion cost, and make the volume available again."""
    volume = get_binned_volume(request, volume_id)
    if volume is None:
        return redirect("snapshots:volume", volume_id)
    price = volume_bin.quote_put_back(volume, at=timezone.now())
    form = ShownPriceForm(request.POST or None, initial={"shown_micro": price.gap_micro if price else 0})
    save = partial(volume_bin.put_back, volume=volume, user=request.user)
    if submit(request, form, lambda: save(**form.cleaned_data)):
        messages.success(request, _("“%(name)s” is back.") % {"name": volume.name})
        return redirect("snapshots:volume", volume.pk)
    if form.is_bound:  # The next submission confirms the price that this page shows.
        form.data = {"shown_micro": price.gap_micro if price else 0}
    context = {"volume": volume, "form": form, "consequences": [*explain_price(price), *what_stays_ended(volume)]}
    return render(request, "snapshots/recycle_bin/put_back_volume.html", context)


def what_stays_ended(volume: Volume) -> list[str]:
    if BackupSchedule.objects.filter(volume=volume, deleted_at=volume.delete_requested_at).exists():
        return [_("Its snapshot schedules ended with the deletion. Make new ones if you want them.")]
    return []


@require_http_methods(["GET", "POST"])
@submit_once
def erase_volume(request: HttpRequest, volume_id: UUID) -> HttpResponse:
    volume = get_binned_volume(request, volume_id)
    if volume is None:
        return redirect("snapshots:volume", volume_id)
    form = erase_form(request, volume.name)
    save = partial(volume_bin.erase, volume=volume, user=request.user)
    if submit(request, form, lambda: save(**form.cleaned_data), field="confirmation"):
        messages.success(request, _("“%(name)s” is being erased.") % {"name": volume.name})
        return redirect("snapshots:volumes_in_bin")
    context = {"volume": volume, "form": form, "consequences": erase_consequences(volume.size_gb)}
    return render(request, "snapshots/recycle_bin/erase_volume.html", context)
