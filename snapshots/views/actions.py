"""The actions on a snapshot. Each has a page with its own form."""

from functools import partial
from uuid import UUID

from django.contrib import messages
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.utils import timezone
from django.utils.translation import gettext as _
from django.views.decorators.http import require_http_methods

from billing.pricing.prices import PriceList
from cng_portal.accounts.models import Project, User
from cng_portal.accounts.submissions import submit_once
from cng_portal.common.money import format_amount, format_price
from cng_portal.common.templatetags.portal import day as format_day
from snapshots import checks, limits, restores, services
from snapshots.assignment import check_movable, explain_new_readers, move_snapshot
from snapshots.deletion_preview import describe, describe_restore, preview_deletion
from snapshots.errors import ActionRefused, NameTaken
from snapshots.expiry import set_expiry, why_not_expirable
from snapshots.forms import (
    ConfirmationForm,
    ExpiryForm,
    MoveForm,
    NewMachineForm,
    NewVolumeForm,
    RenameForm,
    RestoreForm,
)
from snapshots.models import Kind, Operation, Snapshot, State
from snapshots.recycle_bin import explain_deletion, goes_to_bin
from snapshots.storage.registry import get_driver
from snapshots.volumes import new_volumes
from snapshots.volumes import services as volume_services

from .common import attempt, damage_of, get_changeable, page_of, price_of, price_of_new_volumes, submit


@require_http_methods(["GET", "POST"])
def rename(request: HttpRequest, snapshot_id: UUID) -> HttpResponse:
    snapshot = get_changeable(request, snapshot_id)
    form = RenameForm(request.POST or None, initial={"name": snapshot.name})

    def save() -> Snapshot:
        name = request.POST.get("use") or form.cleaned_data["name"]  # `use` is the button with the suggestion.
        try:
            return services.rename_snapshot(snapshot=snapshot, user=request.user, name=name)
        except NameTaken as error:
            form.suggestion = error.suggestion
            raise

    if renamed := submit(request, form, save):
        messages.success(request, _("The snapshot is now called “%(name)s”.") % {"name": renamed.name})
        return redirect("snapshots:snapshot", snapshot.pk)
    return render(request, "snapshots/rename.html", {"snapshot": snapshot, "form": form})


@require_http_methods(["GET", "POST"])
def move(request: HttpRequest, snapshot_id: UUID) -> HttpResponse:
    """Ask for the project by GET, then say who will be able to read the data there, and move the snapshot by POST."""
    user = request.user
    snapshot = get_changeable(request, snapshot_id)
    answers = request.POST if request.method == "POST" else request.GET if "project" in request.GET else None
    projects = Project.objects.changeable_by(user).filter(customer=snapshot.customer_id).exclude(pk=snapshot.project_id)
    form = MoveForm(answers, projects=projects)
    project = form.cleaned_data["project"] if form.is_bound and form.is_valid() else None
    if project and submit(request, form, partial(move_snapshot, snapshot=snapshot, user=user, project=project)):
        names = {"name": snapshot.name, "project": project.name}
        messages.success(request, _("“%(name)s” now belongs to “%(project)s”.") % names)
        return redirect("snapshots:snapshot", snapshot.pk)
    try:
        check_movable(snapshot)
        reason = ""
    except ActionRefused as error:
        reason = str(error)
    if not reason and not projects.exists():
        reason = _("You aren't a member or owner of any other project, so you can't move it.")
    context = {
        "snapshot": snapshot,
        "form": form,
        "reason": reason,
        "project": project if not form.errors else None,
        "readers": explain_new_readers(project, [snapshot.project]) if project else None,
        "is_charged": price_of(snapshot, PriceList.load([snapshot.location_id])) is not None,
    }
    return render(request, "snapshots/move.html", context)


@require_http_methods(["GET", "POST"])
def expiry(request: HttpRequest, snapshot_id: UUID) -> HttpResponse:
    """Set, change or remove the day after which the portal deletes the snapshot."""
    snapshot = get_changeable(request, snapshot_id)
    if reason := why_not_expirable(snapshot):
        messages.error(request, reason)
        return redirect("snapshots:snapshot", snapshot.pk)
    zone = snapshot.project.customer.zone
    form = ExpiryForm(request.POST or None, zone=zone, initial={"delete_after": snapshot.delete_after})

    def save() -> Snapshot:
        day = None if "remove" in request.POST else form.cleaned_data["delete_after"]
        return set_expiry(snapshot=snapshot, user=request.user, day=day)

    if saved := submit(request, form, save):
        if day := saved.delete_after:
            text = _("“%(name)s” will be deleted when %(day)s is over.") % {"name": saved.name, "day": format_day(day)}
        else:
            text = _("“%(name)s” stays until you delete it.") % {"name": saved.name}
        messages.success(request, text)
        return redirect("snapshots:snapshot", snapshot.pk)
    price = price_of(snapshot, PriceList.load([snapshot.location_id]))
    context = {
        "snapshot": snapshot,
        "form": form,
        "hourly": format_price(price.hourly_micro, price.currency) if price else "",
    }
    return render(request, "snapshots/expiry.html", context)


@require_http_methods(["GET", "POST"])
def delete(request: HttpRequest, snapshot_id: UUID) -> HttpResponse:
    snapshot = get_changeable(request, snapshot_id, in_bin=True)
    if snapshot.is_in_bin:  # Sent twice: its page says where it is.
        return redirect("snapshots:snapshot", snapshot_id)
    if request.method == "GET" and (reason := services.why_not_deletable(snapshot)):
        is_unfinished = snapshot.state in (State.PENDING, State.CREATING)
        context = {"snapshot": snapshot, "reason": reason, "unfinished": is_unfinished}
        return render(request, "snapshots/delete.html", context)
    preview = preview_deletion([snapshot], user=request.user, at=timezone.now())
    label = (
        _("Type the backup's name, %(name)s, to confirm")
        if snapshot.kind == Kind.BACKUP
        else _("Type the snapshot's name, %(name)s, to confirm")
    )
    form = ConfirmationForm(
        request.POST or None,
        label=label % {"name": snapshot.name},
        required=_("Type the name “%(name)s” to delete it.") % {"name": snapshot.name},
        expected=snapshot.name,
        last_of=preview.last_of,
    )
    request_deletion = partial(services.request_deletion, snapshot=snapshot, user=request.user)
    if submit(request, form, lambda: request_deletion(even_if_last=form.confirms_last)):
        text = _("“%(name)s” is in the recycle bin.") if goes_to_bin(snapshot) else _("“%(name)s” is being deleted.")
        if snapshot.is_charged:
            text += " " + _("You no longer pay for it.")
        messages.success(request, text % {"name": snapshot.name})
        return redirect("snapshots:snapshot", snapshot.pk)
    context = {
        "snapshot": snapshot,
        "form": form,
        "consequences": deletion_consequences(snapshot, request.user)
        + describe(preview, is_binned=goes_to_bin(snapshot)),
        "is_final": not goes_to_bin(snapshot),
    }
    return render(request, "snapshots/delete.html", context)


def deletion_consequences(snapshot: Snapshot, user: User) -> list[str]:
    consequences = explain_deletion([snapshot])
    volume = snapshot.volume
    if snapshot.source.project_id not in user.roles:
        consequences.append(_("Its source, and volumes created from it, aren't affected."))
    elif volume and volume.deleted_at:
        consequences.append(
            _("Its volume “%(name)s” is gone, so this may be the last copy of its data.") % {"name": volume.name}
        )
    elif volume:
        consequences.append(
            _("The volume “%(name)s”, and volumes created from it, aren't affected.") % {"name": volume.name}
        )
    if not snapshot.is_charged:
        consequences.append(_("It saves nothing: automatic backups are not charged per GB."))
    if price := price_of(snapshot, PriceList.load([snapshot.location_id])):
        consequences.append(
            _("You stop paying %(hourly)s an hour, about %(monthly)s a month.")
            % {
                "hourly": format_price(price.hourly_micro, price.currency),
                "monthly": format_amount(price.monthly_micro, price.currency),
            }
        )
    return consequences


@require_http_methods(["GET", "POST"])
@submit_once
def restore(request: HttpRequest, snapshot_id: UUID) -> HttpResponse:
    """Show the form, or the reason why the snapshot can't be restored now."""
    user = request.user
    snapshot = get_changeable(request, snapshot_id)
    source = snapshot.source
    disks = list(snapshot.disks.select_related("volume__vm"))
    checks.require_change_of_source(user, snapshot, [disk.volume for disk in disks])
    is_machine = snapshot.kind != Kind.VOLUME
    label = (
        _("Type the instance's name, %(name)s, to confirm")
        if is_machine
        else _("Type the volume's name, %(name)s, to confirm")
    )
    form = RestoreForm(
        request.POST or None,
        label=label % {"name": source.name},
        required=_("Type the name “%(name)s” to confirm that it will be overwritten.") % {"name": source.name},
        snapshot=snapshot,
        verify_first=checks.is_verified_first(snapshot, disks),
        skip=_("Restore without checking"),
    )
    if submit(request, form, lambda: restores.request_restore(snapshot=snapshot, user=user, **form.cleaned_data)):
        messages.success(
            request,
            _("“%(source)s” is being restored from “%(snapshot)s”. Don't use it until this has finished.")
            % {"source": source.name, "snapshot": snapshot.name},
        )
        return redirect("snapshots:snapshot", snapshot.pk)
    undone = snapshot.protects.filter(finished_at__isnull=False).select_related("snapshot").first()
    reason, quote = "", None
    captured_at = next((disk.captured_at for disk in disks if disk.captured_at), snapshot.created_at)
    try:
        restores.check_restorable(snapshot)
        quote = checks.check_deliverable(source, safety=True)
    except ActionRefused as error:
        reason = str(error)
    context = {
        "snapshot": snapshot,
        "source": source,
        "is_machine": is_machine,
        "form": form,
        "reason": reason,
        "disks": disks,
        "grown": [disk for disk in disks if disk.volume.size_gb > disk.size_gb],
        "captured_at": captured_at,
        "newer": describe_restore(snapshot, disks, captured_at=captured_at),
        "damage": damage_of(disks),
        "can_undo": not get_driver(snapshot.location).reverts_only_latest,
        "safety_name": _("before-restore-of-%(name)s") % {"name": source.name[:40]},
        "safety_price": format_price(quote.hourly_micro, quote.currency) if quote else "",
        "undoes": undone,
        "can_see_undone": undone and undone.snapshot.project_id in user.roles,
    }
    return render(request, "snapshots/restore.html", context)


@require_http_methods(["GET", "POST"])
@submit_once
def new_volume(request: HttpRequest, snapshot_id: UUID) -> HttpResponse:
    user = request.user
    snapshot = get_changeable(request, snapshot_id)
    disks = list(snapshot.disks.all())
    if not disks:
        raise Http404
    selected = request.POST.get("disk") or request.GET.get("disk")
    disk = next((disk for disk in disks if str(disk.pk) == selected), disks[0])
    quote = volume_services.quote_volume(snapshot.project, snapshot.location, disk.size_gb, at=timezone.now())
    form = NewVolumeForm(
        request.POST or None,
        disks=disks,
        disk=disk,
        projects=Project.objects.changeable_by(user).filter(customer=snapshot.customer_id),
        snapshot=snapshot,
        verify_first=checks.is_verified_first(snapshot, disks),
        skip=_("Create without checking"),
        initial={
            "disk": disk.pk,
            "name": _("%(name)s-copy") % {"name": disk.volume_name[:100]},
            "size_gb": disk.size_gb,
            "project": snapshot.project_id,
        },
    )

    def request_volume() -> Operation:
        answers = {name: value for name, value in form.cleaned_data.items() if name != "disk"}
        rate_micro = answers.pop("shown_rate_micro")
        shown = None if rate_micro is None else rate_micro * answers["size_gb"]
        return new_volumes.request_new_volume(
            snapshot=snapshot, user=user, disk=disk, shown_hourly_micro=shown, **answers
        )

    if operation := submit(request, form, request_volume):
        messages.success(
            request,
            _("The volume “%(volume)s” is being created from “%(snapshot)s”.")
            % {"volume": form.cleaned_data["name"], "snapshot": snapshot.name},
        )
        return redirect("snapshots:volume", operation.volume_id)
    context = {
        "snapshot": snapshot,
        "form": form,
        "reason": why_not_ready(snapshot),
        "quotas": [use for use in limits.volume_quota_use(snapshot.project) if use.is_limited],
        "damage": damage_of(disks),
        "price": price_of_new_volumes(quote, per_gb=True),
        "rate_micro": quote.rate_micro if quote else 0,
    }
    return render(request, "snapshots/new_volume.html", context)


def why_not_ready(snapshot: Snapshot) -> str:
    try:
        checks.require_ready(snapshot)
    except ActionRefused as error:
        return str(error)
    return ""


@require_http_methods(["GET", "POST"])
@submit_once
def new_machine(request: HttpRequest, snapshot_id: UUID) -> HttpResponse:
    """Create a stopped machine like the captured one, with a new volume for each disk."""
    user = request.user
    snapshot = get_changeable(request, snapshot_id)
    if snapshot.kind == Kind.VOLUME:
        raise Http404
    disks = list(snapshot.disks.all())
    form = NewMachineForm(
        request.POST or None,
        projects=Project.objects.changeable_by(user).filter(customer=snapshot.customer_id),
        snapshot=snapshot,
        verify_first=checks.is_verified_first(snapshot, disks),
        skip=_("Create without checking"),
        initial={
            "name": _("%(name)s-copy") % {"name": snapshot.source.name[:100]},
            "project": snapshot.project_id,
        },
    )
    if machine := submit(
        request, form, lambda: new_volumes.request_new_machine(snapshot=snapshot, user=user, **form.cleaned_data)
    ):
        messages.success(
            request,
            _("The instance “%(machine)s” is being created from “%(snapshot)s”. It stays stopped until you start it.")
            % {"machine": machine.name, "snapshot": snapshot.name},
        )
        return redirect("snapshots:snapshot", snapshot.pk)
    context = {
        "snapshot": snapshot,
        "form": form,
        "reason": why_not_ready(snapshot),
        "quotas": [use for use in limits.volume_quota_use(snapshot.project) if use.is_limited],
        "disks": disks,
        "damage": damage_of(disks),
        "price": price_of_new_volumes(
            volume_services.quote_volume(
                snapshot.project, snapshot.location, sum(disk.size_gb for disk in disks), at=timezone.now()
            )
        ),
    }
    return render(request, "snapshots/new_machine.html", context)


@require_http_methods(["GET", "POST"])
@submit_once
def verify(request: HttpRequest, snapshot_id: UUID) -> HttpResponse:
    snapshot = get_changeable(request, snapshot_id)
    reads_bytes = get_driver(snapshot.location).reads_bytes
    if attempt(request, partial(services.request_verification, snapshot=snapshot, user=request.user)):
        text = (
            _("“%(name)s” is being read and compared with its checksum.")
            if reads_bytes
            else _("The storage is being asked whether “%(name)s” is intact.")
        )
        messages.success(request, text % {"name": snapshot.name})
        return redirect("snapshots:snapshot", snapshot.pk)
    price = price_of(snapshot, PriceList.load([snapshot.location_id]), once_sound=True)
    context = {
        "snapshot": snapshot,
        "reads_bytes": reads_bytes,
        "hourly": format_price(price.hourly_micro, price.currency) if price else "",
    }
    return render(request, "snapshots/verify.html", context)


@require_http_methods(["GET", "POST"])
def retry(request: HttpRequest, operation_id: UUID) -> HttpResponse:
    """Retry a failed operation, and redirect to the page of the snapshot, or of the volume it creates."""
    visible = Operation.objects.visible_to(request.user)
    related = ("snapshot__volume__location", "volume__project", "volume__location")
    operation = get_object_or_404(visible.select_related(*related), pk=operation_id)
    if request.method == "POST":  # GET is the return from a sign-in in between.
        checks.require_change(request.user, operation.subject.project_id)
        if attempt(request, partial(services.retry, operation=operation, user=request.user)):
            messages.success(request, _("The operation is being retried."))
    return redirect(page_of(operation))
