"""The actions on a volume. Each has a page with its own form."""

from dataclasses import dataclass
from functools import partial
from uuid import UUID

from django.contrib import messages
from django.db.models import Count, Sum
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.urls import reverse
from django.utils import timezone
from django.utils.translation import gettext as _
from django.utils.translation import ngettext
from django.views.decorators.http import require_GET, require_http_methods

from billing.models import ServiceKind
from billing.pricing.prices import PriceList, Quote
from cng_portal.accounts.models import User
from cng_portal.accounts.submissions import submit_once
from cng_portal.common.money import format_amount, format_count, format_price
from cng_portal.common.responses import is_fragment
from cng_portal.inventory.models import Volume
from snapshots import checks, limits
from snapshots.deletion_preview import describe, preview_deletion
from snapshots.forms import AttachForm, ConfirmationForm, GrowForm, VolumeNameForm
from snapshots.models import COUNTED_STATES, BackupSchedule, Snapshot, costs_nothing
from snapshots.recycle_bin import explain_deletion, goes_to_bin
from snapshots.storage.registry import get_driver
from snapshots.volumes import services as volume_services
from snapshots.volumes.charges import quote_volumes

from .common import attempt, submit
from .rows import Action

VOLUME_RELATED = ("project__customer", "location", "vm")


def get_volume(user: User, volume_id: UUID) -> Volume:
    return get_object_or_404(Volume.objects.visible_to(user).select_related(*VOLUME_RELATED), pk=volume_id)


def get_changeable_volume(request: HttpRequest, volume_id: UUID, *, in_bin: bool = False) -> Volume:
    """Return the volume for an action. 404 for strangers and deleted volumes, 403 with an explanation for viewers.

    `in_bin` also returns one in the recycle bin.
    """
    volume = get_volume(request.user, volume_id)
    if volume.deleted_at and not (in_bin and volume.is_in_bin):
        raise Http404
    checks.require_change(request.user, volume.project_id)
    return volume


def volume_actions_for(volume: Volume, user: User) -> list[Action]:
    """List what the user can do with the volume now, besides taking a snapshot. Nothing for viewers."""
    if not user.can_change(volume.project_id) or volume.deleted_at or volume.delete_requested_at:
        return []
    is_available = volume.state == Volume.State.AVAILABLE
    attaches, machine = get_driver(volume.location).attaches, volume_services.machine_of(volume)
    actions = [
        (is_available, "grow_volume", _("Grow"), "arrows-pointing-out"),
        (is_available and attaches and machine is None, "attach_volume", _("Attach"), "link"),
        (is_available and attaches and machine is not None, "detach_volume", _("Detach"), "link-slash"),
        (True, "rename_volume", _("Rename"), "pencil-square"),
        (volume.state != Volume.State.CREATING, "delete_volume", _("Delete"), "trash"),
    ]
    return [
        Action(name, label, reverse(f"snapshots:{name}", args=[volume.pk]), icon, danger=name == "delete_volume")
        for is_possible, name, label, icon in actions
        if is_possible
    ]


@require_GET
def volume_menu(request: HttpRequest, volume_id: UUID) -> HttpResponse:
    """Return the menu of a row, which loads it when it is opened."""
    volume = get_volume(request.user, volume_id)
    if not is_fragment(request):
        return redirect("snapshots:volume", volume_id)
    return render(request, "partials/menu_items.html", {"actions": volume_actions_for(volume, request.user)})


@require_http_methods(["GET", "POST"])
def rename_volume(request: HttpRequest, volume_id: UUID) -> HttpResponse:
    volume = get_changeable_volume(request, volume_id)
    form = VolumeNameForm(request.POST or None, initial={"name": volume.name})
    save = partial(volume_services.rename_volume, volume=volume, user=request.user)
    if renamed := submit(request, form, lambda: save(name=form.cleaned_data["name"])):
        messages.success(request, _("The volume is now called “%(name)s”.") % {"name": renamed.name})
        return redirect("snapshots:volume", volume.pk)
    context = {"volume": volume, "form": form, "reason": volume_services.why_not_renamable(volume)}
    return render(request, "snapshots/volumes/rename.html", context)


@dataclass(frozen=True)
class Price:
    """What a volume of a size costs; the texts are empty where that is nothing."""

    size_gb: int
    hourly: str = ""
    monthly: str = ""
    formula: str = ""

    @classmethod
    def build(cls, size_gb: int, quote: Quote | None) -> "Price":
        if quote is None:
            return cls(size_gb)
        return cls(
            size_gb,
            format_price(quote.hourly_micro, quote.currency),
            format_amount(quote.monthly_micro, quote.currency),
            quote.formula,
        )


@require_http_methods(["GET", "POST"])
@submit_once
def grow_volume(request: HttpRequest, volume_id: UUID) -> HttpResponse:
    """Ask for the size, then show its price with the button that grows the volume."""
    volume = get_changeable_volume(request, volume_id)
    answers = request.POST or (request.GET if "size_gb" in request.GET else None)
    form = GrowForm(answers, volume=volume)
    grow = partial(volume_services.request_extension, volume=volume, user=request.user)
    if submit(request, form, lambda: grow(**form.cleaned_data)):
        sizes = {"name": volume.name, "size": form.cleaned_data["size_gb"]}
        messages.success(request, _("“%(name)s” is growing to %(size)s GB.") % sizes)
        return redirect("snapshots:volume", volume.pk)
    at = timezone.now()
    form.is_valid()  # Also of a GET.
    size_gb = getattr(form, "cleaned_data", {}).get("size_gb")
    quote = volume_services.quote_volume(volume.project, volume.location, size_gb, at=at) if size_gb else None
    context = {
        "volume": volume,
        "form": form,
        "reason": volume_services.why_not_extendable(volume),
        "quotas": [use for use in limits.volume_quota_use(volume.project) if use.is_limited],
        "now": Price.build(volume.size_gb, quote_volumes([volume], at=at).get(volume.pk)),
        "then": Price.build(size_gb, quote) if size_gb else None,
        "shown_hourly_micro": quote.hourly_micro if quote else 0,
        "reverts_only_latest": get_driver(volume.location).reverts_only_latest,
    }
    return render(request, "snapshots/volumes/grow.html", context)


@require_http_methods(["GET", "POST"])
def attach_volume(request: HttpRequest, volume_id: UUID) -> HttpResponse:
    volume = get_changeable_volume(request, volume_id)
    machines, search = volume_services.attachable_machines(volume), request.GET.get("q", "").replace("\x00", "").strip()
    form = AttachForm(request.POST or None, machines=machines, search=search)
    attach = partial(volume_services.attach_volume, volume=volume, user=request.user)
    if attached := submit(request, form, lambda: attach(vm=form.cleaned_data["vm"]), field="vm"):
        names = {"name": attached.name, "vm": attached.vm}
        messages.success(request, _("“%(name)s” is attached to %(vm)s. Start the instance to use it.") % names)
        return redirect("snapshots:volume", volume.pk)
    reason = volume_services.why_not_attachable(volume)
    if not reason and not form.machines and not machines.exists():
        reason = _(
            "There is no stopped instance in the project %(project)s in %(location)s. Stop the instance that you "
            "want to attach the volume to, then try again."
        ) % {"project": volume.project, "location": volume.location_id}
    context = {"volume": volume, "form": form, "reason": reason, "search": search, "shown": len(form.machines)}
    return render(request, "snapshots/volumes/attach.html", context)


@require_http_methods(["GET", "POST"])
def detach_volume(request: HttpRequest, volume_id: UUID) -> HttpResponse:
    volume = get_changeable_volume(request, volume_id)
    machine = volume_services.machine_of(volume)
    if attempt(request, partial(volume_services.detach_volume, volume=volume, user=request.user)):
        messages.success(request, _("“%(name)s” is detached. It keeps its data.") % {"name": volume.name})
        return redirect("snapshots:volume", volume.pk)
    reason = volume_services.why_not_detachable(volume)
    return render(request, "snapshots/volumes/detach.html", {"volume": volume, "machine": machine, "reason": reason})


@require_http_methods(["GET", "POST"])
def delete_volume(request: HttpRequest, volume_id: UUID) -> HttpResponse:
    volume = get_changeable_volume(request, volume_id, in_bin=True)
    if volume.is_in_bin:  # Sent twice: its page says where it is.
        return redirect("snapshots:volume", volume_id)
    form = ConfirmationForm(
        request.POST or None,
        label=_("Type the volume's name, %(name)s, to confirm") % {"name": volume.name},
        required=_("Type the name “%(name)s” to delete it.") % {"name": volume.name},
        expected=volume.name,
    )
    delete = partial(volume_services.request_volume_deletion, volume=volume, user=request.user)
    price = quote_volumes([volume], at=timezone.now()).get(volume.pk)
    if deleted := submit(request, form, lambda: delete(confirmation=form.cleaned_data["confirmation"])):
        text = (
            _("“%(name)s” is in the recycle bin. You can put it back.")
            if deleted.is_in_bin
            else _("“%(name)s” is being deleted. You no longer pay for it.")
            if price
            else _("“%(name)s” is being deleted.")
        )
        messages.success(request, text % {"name": volume.name})
        return redirect("snapshots:volume", volume.pk)
    context = {
        "volume": volume,
        "form": form,
        "reason": volume_services.why_not_deletable(volume),
        "can_detach": volume_services.machine_of(volume) is not None and not volume_services.why_not_detachable(volume),
        "consequences": deletion_consequences(volume, price, request.user)
        + describe(preview_deletion([], volumes=[volume], user=request.user, at=timezone.now())),
        "is_final": not goes_to_bin(volume),
    }
    return render(request, "snapshots/volumes/delete.html", context)


def deletion_consequences(volume: Volume, price: Quote | None, user: User) -> list[str]:
    consequences = explain_deletion([volume])
    if price:
        consequences.append(
            _("You stop paying %(hourly)s an hour, about %(monthly)s a month.")
            % {
                "hourly": format_price(price.hourly_micro, price.currency),
                "monthly": format_amount(price.monthly_micro, price.currency),
            }
        )
    if BackupSchedule.objects.present().filter(volume=volume).exists():
        consequences.append(_("Its snapshot schedules end."))
    snapshots = Snapshot.objects.filter(volume=volume, deleted_at=None, state__in=COUNTED_STATES)
    count = snapshots.count()
    if not count:
        if not goes_to_bin(volume):
            consequences.append(_("It has no snapshots of its own, so its data can't be recovered."))
        return consequences
    consequences.append(
        ngettext(
            "Its snapshot stays, and a new volume can be made from it.",
            "Its %(count)s snapshots stay, and new volumes can be made from them.",
            count,
        )
        % {"count": format_count(count)}
    )
    charged = snapshots.filter(project__in=list(user.roles), damaged_at=None).exclude(costs_nothing())
    charged_count, size_gb = charged.aggregate(count=Count("pk"), size_gb=Sum("size_gb")).values()
    currency = volume.project.customer.currency
    quote = PriceList.load([volume.location_id]).quote(
        ServiceKind.BS_SNAPSHOT, volume.location_id, currency, timezone.now(), size_gb=size_gb or 0
    )
    if charged_count and quote:
        consequences.append(
            ngettext(
                "The snapshot still costs %(hourly)s an hour until you delete it.",
                "The snapshots still cost %(hourly)s an hour together until you delete them.",
                charged_count,
            )
            % {"hourly": format_price(quote.hourly_micro, currency)}
        )
    return consequences
