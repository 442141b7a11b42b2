"""The recycle bin: its lists, putting back, and deleting for good."""

from dataclasses import dataclass
from functools import partial
from typing import Any
from uuid import UUID

from django import forms
from django.contrib import messages
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.urls import reverse
from django.utils import timezone
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy, ngettext
from django.views.decorators.http import require_GET, require_http_methods

from cng_portal.accounts.approvals import REQUESTED
from cng_portal.accounts.submissions import submit_once
from cng_portal.common.money import format_amount, format_price
from cng_portal.common.pages import Order, page_of
from cng_portal.common.responses import is_fragment
from cng_portal.inventory.models import Volume
from snapshots import checks, recycle_bin
from snapshots.errors import NameTaken
from snapshots.forms import BinFilterForm, ConfirmationForm, PutBackForm, ShownPriceForm
from snapshots.models import BackupSchedule, Snapshot
from snapshots.recycle_bin import Binned
from snapshots.volumes import recycle_bin as volume_bin

from .common import get_snapshot, render_list, submit
from .volume_actions import get_volume

ORDER = Order(gettext_lazy("Erased next first"), "bin_until")


@dataclass(frozen=True)
class BinRow:
    """A deleted snapshot, backup or volume. A volume has no source."""

    binned: Binned
    can_change: bool
    can_see_source: bool = False

    @property
    def page_url(self) -> str:
        return reverse(f"snapshots:{self.binned._meta.model_name}", args=[self.binned.pk])

    @property
    def list_url(self) -> str:
        return reverse("snapshots:volumes_in_bin" if isinstance(self.binned, Volume) else "snapshots:recycle_bin")

    @property
    def put_back_url(self) -> str:
        name = "put_back_volume" if isinstance(self.binned, Volume) else "put_back"
        return reverse(f"snapshots:{name}", args=[self.binned.pk])

    @property
    def erase_url(self) -> str:
        name = "erase_volume" if isinstance(self.binned, Volume) else "erase"
        return reverse(f"snapshots:{name}", args=[self.binned.pk])


@require_GET
def snapshots(request: HttpRequest) -> HttpResponse:
    visible = Snapshot.objects.visible_to(request.user).in_bin().select_related("project", "location", "volume", "vm")
    return show_list(request, visible, "snapshots:recycle_bin")


@require_GET
def volumes(request: HttpRequest) -> HttpResponse:
    visible = Volume.objects.visible_to(request.user).in_bin().select_related("project", "location")
    return show_list(request, visible, "snapshots:volumes_in_bin")


def show_list(request: HttpRequest, visible: QuerySet[Any], active: str) -> HttpResponse:
    user = request.user
    form = BinFilterForm(request.GET, user=user)
    if form.opens_panel and is_fragment(request):
        return render(request, "partials/filter_panel.html", {"form": form})
    page = page_of(form.narrow(visible), ORDER, request.GET)
    has_source = visible.model is Snapshot
    rows = [
        BinRow(
            binned,
            can_change=user.can_change(binned.project_id),
            can_see_source=has_source and binned.source.project_id in user.roles,
        )
        for binned in page.rows
    ]
    tabs = [("snapshots:recycle_bin", _("Snapshots and backups")), ("snapshots:volumes_in_bin", _("Volumes"))]
    context = {
        "form": form,
        "rows": rows,
        "has_source": has_source,
        "days": recycle_bin.bin_days(user.customer) if user.customer else 0,
        "tabs": [{"label": label, "url": reverse(name), "active": name == active} for name, label in tabs],
    }
    return render_list(request, "snapshots/recycle_bin/list.html", "bin-list", page, form.chosen, context)


def get_binned(request: HttpRequest, binned: Binned) -> BinRow | None:
    """Return the row of an action's page, None if it has left the recycle bin. 403 for viewers."""
    checks.require_change(request.user, binned.project_id)
    if binned.is_in_bin:
        return BinRow(binned, can_change=True)
    messages.info(request, _("“%(name)s” is no longer in the recycle bin.") % {"name": binned.name})
    return None


def context_of(row: BinRow, form: forms.Form, consequences: list[str]) -> dict[str, object]:
    return {
        "name": row.binned.name,
        "list_url": row.list_url,
        "page_url": row.page_url,
        "form": form,
        "consequences": consequences,
    }


@require_http_methods(["GET", "POST"])
@submit_once
def put_back(request: HttpRequest, snapshot_id: UUID) -> HttpResponse:
    """Say what the hours since the deletion cost, and put the snapshot back under its name or a free one."""
    snapshot = get_snapshot(request.user, snapshot_id)
    row = get_binned(request, snapshot)
    if row is None:
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
    context = context_of(row, form, put_back_consequences(snapshot, price))
    context |= {"kind": snapshot.kind, "is_taken": name != snapshot.name}
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
def put_back_volume(request: HttpRequest, volume_id: UUID) -> HttpResponse:
    """Say what the hours since the deletion cost, and make the volume available again."""
    volume = get_volume(request.user, volume_id)
    row = get_binned(request, volume)
    if row is None:
        return redirect("snapshots:volume", volume_id)
    price = volume_bin.quote_put_back(volume, at=timezone.now())
    form = ShownPriceForm(request.POST or None, initial={"shown_micro": price.gap_micro if price else 0})
    save = partial(volume_bin.put_back, volume=volume, user=request.user)
    if submit(request, form, lambda: save(**form.cleaned_data)):
        messages.success(request, _("“%(name)s” is back.") % {"name": volume.name})
        return redirect("snapshots:volume", volume.pk)
    if form.is_bound:  # The next submission confirms the price that this page shows.
        form.data = {"shown_micro": price.gap_micro if price else 0}
    context = context_of(row, form, [*explain_price(price), *explain_ended_schedules(volume)])
    return render(request, "snapshots/recycle_bin/put_back_volume.html", context)


def explain_ended_schedules(volume: Volume) -> list[str]:
    if BackupSchedule.objects.filter(volume=volume, deleted_at=volume.delete_requested_at).exists():
        return [_("Its snapshot schedules ended with the deletion. Make new ones if you want them.")]
    return []


@require_http_methods(["GET", "POST"])
@submit_once
def erase(request: HttpRequest, snapshot_id: UUID) -> HttpResponse:
    return show_erasing(request, get_snapshot(request.user, snapshot_id))


@require_http_methods(["GET", "POST"])
@submit_once
def erase_volume(request: HttpRequest, volume_id: UUID) -> HttpResponse:
    return show_erasing(request, get_volume(request.user, volume_id))


def show_erasing(request: HttpRequest, binned: Binned) -> HttpResponse:
    row = get_binned(request, binned)
    if row is None:
        return redirect(BinRow(binned, can_change=True).page_url)
    form = ConfirmationForm(
        request.POST or None,
        label=_("Type its name, %(name)s, to confirm") % {"name": binned.name},
        required=_("Type the name “%(name)s” to delete it for good.") % {"name": binned.name},
    )
    save = partial(recycle_bin.erase, binned=binned, user=request.user)
    if erased := submit(request, form, lambda: save(**form.cleaned_data), field="confirmation"):
        if erased.is_in_bin:
            messages.info(request, REQUESTED)
            return redirect("accounts:approvals")
        messages.success(request, _("“%(name)s” is being erased.") % {"name": binned.name})
        return redirect(row.list_url)
    consequences = [
        _("Its data is erased now. This can't be undone, not even by support."),
        _("It costs nothing already, so this saves nothing. It frees %(size)s GB of your quota.")
        % {"size": binned.size_gb},
    ]
    if binned.project.customer.needs_approval:
        consequences.append(
            _("Another owner has to approve it within 72 hours. Until then it stays in the recycle bin.")
        )
    return render(request, "snapshots/recycle_bin/erase.html", context_of(row, form, consequences))
