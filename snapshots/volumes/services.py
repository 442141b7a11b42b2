"""What users do with volumes: create, rename, grow, attach, detach, delete. new_volumes.py makes them from snapshots.

Each validates, writes in one transaction under the customer's lock, and returns the volume, or raises an ActionRefused with
nothing written.
"""

from datetime import datetime

from django.conf import settings
from django.core.exceptions import ValidationError
from django.db import transaction
from django.utils import timezone
from django.utils.translation import gettext as _
from django.utils.translation import ngettext

from billing.models import ServiceKind
from billing.pricing.prices import PriceList, Quote
from billing.usage import rename_resource
from cng_portal.accounts.models import Project, User
from cng_portal.accounts.services import lock_customer
from cng_portal.activity import services as activity
from cng_portal.common.names import clean_name, is_same_name
from cng_portal.inventory.models import CloudProject, Location, VirtualMachine, Volume

from .. import checks, limits
from ..backups.ending import end_schedules_of
from ..errors import InvalidState, NameTaken, OutOfSpace, SourceUnavailable, WrongConfirmation
from ..models import DiskImage, Draft, Operation, in_storage
from ..operations.lifecycle import create_operation
from ..recycle_bin import goes_to_bin
from ..storage.contract import StorageError
from ..storage.registry import get_driver
from .charges import stop_charging_volume
from .recycle_bin import put_in_bin


def request_volume(
    *,
    project: Project,
    location: Location,
    size_gb: int,
    name: str,
    user: User,
    shown_hourly_micro: int | None = None,
    draft: Draft | None = None,
    note: str | None = None,
    metadata: dict[str, str] | None = None,
) -> Volume:
    """Request an empty volume. The same draft again returns the volume that it created the first time.

    `shown_hourly_micro` is the price that the user saw. Raises any ActionRefused.
    """
    check_size(location, size_gb)
    check_space(location)
    with transaction.atomic():
        lock_customer(project.customer_id)
        if draft and (created := find_created_volume(draft)):
            return created
        project = Project.objects.select_related("customer").get(pk=project.pk)
        location = Location.objects.get(pk=location.pk)
        checks.require_change(User.objects.get(pk=user.pk), project.pk)
        check_open(location)
        name = check_name(name)
        limits.check_rate_limit(project.customer_id, Operation.Kind.CREATE_VOLUME)
        backend_project = cloud_project_of(project, location)
        check_new_volume(project, location, backend_project, size_gb, shown_hourly_micro)
        volume = Volume.objects.create(
            project=project,
            location=location,
            name=name,
            size_gb=size_gb,
            state=Volume.State.CREATING,
            backend_project=backend_project,
            note=note,
            metadata=metadata,
        )
        if draft:
            Draft.objects.filter(pk=draft.pk).update(created_volume=volume)
        create_operation(kind=Operation.Kind.CREATE_VOLUME, volume=volume, requested_by=user)
    return volume


def find_created_volume(draft: Draft) -> Volume | None:
    return Volume.objects.filter(pk__in=Draft.objects.filter(pk=draft.pk).values("created_volume")).first()


def check_new_volume(
    project: Project, location: Location, backend_project: str, size_gb: int, shown_hourly_micro: int | None = None
) -> None:
    """Check quotas, price and credit of one more volume. Services hold the customer's lock."""
    limits.check_volume_quota(project.pk, [size_gb])
    limits.check_cloud_quota(location.pk, backend_project, volumes=1, gb=size_gb)
    check_price(project, location, size_gb, shown_hourly_micro)


def check_price(project: Project, location: Location, size_gb: int, shown_hourly_micro: int | None = None) -> None:
    """Check the credit for new volumes of so many GB together, and the price that the user saw."""
    at = timezone.now()
    if quote := quote_volume(project, location, size_gb, at=at):
        checks.check_cover(project.customer, quote.hourly_micro, at=at)
        checks.check_shown_price(quote, shown_hourly_micro)


def quote_volume(project: Project, location: Location, size_gb: int, *, at: datetime) -> Quote | None:
    """Return today's price of a new volume, None where its location sells no Block Storage. One query."""
    prices, currency = PriceList.load([location.pk]), project.customer.currency
    if prices.sold_rate(ServiceKind.BLOCK_STORAGE, location.pk, currency, at) is None:
        return None
    return prices.quote(ServiceKind.BLOCK_STORAGE, location.pk, currency, at, size_gb=size_gb)


def cloud_project_of(project: Project, location: Location) -> str:
    """Return the ID of the cloud's project in which the project's new volumes are created; "" is the portal's own."""
    assigned = CloudProject.objects.filter(location=location, project=project, missing_since=None)
    return assigned.order_by("pk").values_list("external_id", flat=True).first() or ""


def check_size(location: Location, size_gb: int) -> None:
    """Raise OutOfSpace if the provider or the storage doesn't allow this size. Call it outside a transaction."""
    if size_gb < 1:
        raise OutOfSpace(_("A volume has at least 1 GB. Choose a larger size."))
    if size_gb > settings.MAX_VOLUME_GB:
        raise OutOfSpace(
            _("A volume has at most %(size)s GB. Choose a smaller size.") % {"size": f"{settings.MAX_VOLUME_GB:,}"}
        )
    try:
        get_driver(location).check_volume_size(size_gb)
    except StorageError as error:
        raise OutOfSpace(str(error)) from error


def check_space(location: Location) -> None:
    """Raise OutOfSpace if the storage is full: an empty volume takes hardly any. Call it outside a transaction."""
    try:
        free = get_driver(location).free_bytes()
    except StorageError as error:
        raise OutOfSpace(str(error)) from error
    checks.require_space(location.pk, 0, free)


def check_open(location: Location) -> None:
    if not location.active:
        raise SourceUnavailable(
            _("The location %(code)s is closed for new volumes. Choose another one, or ask your provider.")
            % {"code": location.pk}
        )


def check_name(name: str) -> str:
    """Return the cleaned name. Volumes may share a name."""
    try:
        return clean_name(name)
    except ValidationError as error:
        raise NameTaken(error.messages[0], "") from error


def rename_volume(*, volume: Volume, user: User, name: str) -> Volume:
    """Raises NameTaken if the name is invalid, InvalidState."""
    with transaction.atomic():
        volume = lock_volume(volume, user)
        if reason := why_not_renamable(volume):
            raise InvalidState(reason)
        before, name = volume.name, check_name(name)
        volume.name = name
        volume.save(update_fields=["name", "name_key"])
        rename_resource(resource_id=volume.pk, name=name)
        activity.record(
            action="volume.rename", actor=user, target=volume, before={"name": before}, after={"name": name}
        )
    return volume


def why_not_renamable(volume: Volume) -> str:
    """Return why the volume can't be renamed, or an empty string."""
    if reason := why_gone(volume):
        return reason
    if not get_driver(volume.location).attaches and not is_portals_own(volume):
        return _("“%(name)s” was created in the cloud, which also sets its name. Rename it there.") % {
            "name": volume.name
        }
    return ""


def is_portals_own(volume: Volume) -> bool:
    """Return whether the portal created the volume, rather than the cloud."""
    return volume.operations.filter(kind__in=[Operation.Kind.CREATE_VOLUME, Operation.Kind.NEW_VOLUME]).exists()


def request_extension(*, volume: Volume, user: User, size_gb: int, shown_hourly_micro: int | None = None) -> Operation:
    """Request that the volume grows to `size_gb`. It never shrinks.

    `shown_hourly_micro` is the price of the new size that the user saw. Raises any ActionRefused.
    """
    check_size(volume.location, size_gb)
    check_space(volume.location)
    with transaction.atomic():
        volume = lock_volume(volume, user)
        if reason := why_not_extendable(volume):
            raise InvalidState(reason)
        more_gb = size_gb - volume.size_gb
        if more_gb <= 0:
            raise InvalidState(
                _("The volume has %(size)s GB already, and can't shrink. Choose a larger size.")
                % {"size": volume.size_gb}
            )
        limits.check_rate_limit(volume.customer_id, Operation.Kind.EXTEND_VOLUME)
        limits.check_growth_quota(volume.project_id, more_gb)
        limits.check_cloud_quota(volume.location_id, volume.backend_project, gb=more_gb)
        at = timezone.now()
        if quote := quote_volume(volume.project, volume.location, size_gb, at=at):
            # The current size is charged already.
            checks.check_cover(volume.project.customer, quote.hourly_micro * more_gb // size_gb, at=at)
            checks.check_shown_price(quote, shown_hourly_micro)
        return create_operation(
            kind=Operation.Kind.EXTEND_VOLUME, volume=volume, new_size_gb=size_gb, requested_by=user
        )


def why_not_extendable(volume: Volume) -> str:
    """Return why the volume can't grow now, or an empty string."""
    if reason := why_not_usable(volume) or why_busy([volume]):
        return reason
    machine = machine_of(volume)
    if machine and machine.is_running and get_driver(volume.location).attaches:
        return _("“%(name)s” is in use: its instance %(vm)s is running. Stop the instance first.") % {
            "name": volume.name,
            "vm": machine.name,
        }
    return ""


def attach_volume(*, volume: Volume, vm: VirtualMachine, user: User) -> Volume:
    """Attach the volume to a stopped machine of its project and location, at the next free position. Raises InvalidState."""
    with transaction.atomic():
        volume = lock_volume(volume, user)
        if reason := why_not_attachable(volume):
            raise InvalidState(reason)
        vm = VirtualMachine.objects.get(pk=vm.pk)
        if not attachable_machines(volume).filter(pk=vm.pk).exists():
            raise InvalidState(
                _("“%(vm)s” is running, was deleted, or is in another project or location. Choose a stopped instance.")
                % {"vm": vm.name}
            )
        others = checks.volumes_of(vm)
        if reason := why_busy(others):
            raise InvalidState(reason)
        taken = {other.position for other in others}
        position = next(number for number in range(len(taken) + 1) if number not in taken)
        Volume.objects.filter(pk=volume.pk).update(vm=vm, position=position)
        volume.vm, volume.position = vm, position
        activity.record(
            action="volume.attach", actor=user, target=volume, after={"machine": vm.name, "position": position}
        )
    return volume


def why_not_attachable(volume: Volume) -> str:
    """Return why the volume can't be attached to any machine now, or an empty string."""
    if reason := why_not_usable(volume) or why_cloud_attaches(volume) or why_busy([volume]):
        return reason
    if machine := machine_of(volume):
        return _("“%(name)s” is attached to %(vm)s already. Detach it there first.") % {
            "name": volume.name,
            "vm": machine.name,
        }
    return ""


def attachable_machines(volume: Volume):  # type: ignore[no-untyped-def]
    """Return the stopped machines of the volume's project and location, by name."""
    stopped = VirtualMachine.objects.present().filter(state=VirtualMachine.State.STOPPED, backend_ref="")
    return stopped.filter(project=volume.project_id, location=volume.location_id).order_by("name", "id")


def detach_volume(*, volume: Volume, user: User) -> Volume:
    """Detach the volume from its machine. No-op if it isn't attached. Raises InvalidState."""
    with transaction.atomic():
        volume = lock_volume(volume, user)
        if volume.vm is None:
            return volume
        if reason := why_not_detachable(volume):
            raise InvalidState(reason)
        before = {"machine": volume.vm.name, "position": volume.position}
        Volume.objects.filter(pk=volume.pk).update(vm=None, position=0)
        volume.vm, volume.position = None, 0
        activity.record(action="volume.detach", actor=user, target=volume, before=before)
    return volume


def why_not_detachable(volume: Volume) -> str:
    """Return why the volume can't be detached now, or an empty string."""
    if reason := why_not_usable(volume) or why_cloud_attaches(volume):
        return reason
    machine = machine_of(volume)
    if machine is None:
        return "" if volume.vm else _("“%(name)s” isn't attached to an instance.") % {"name": volume.name}
    if machine.is_running:
        return _("The instance %(vm)s is running. Stop it first.") % {"vm": machine.name}
    disks = checks.volumes_of(machine)
    if volume.position == 0 and len(disks) > 1:
        return _("“%(name)s” is the root volume of %(vm)s. Detach the other volumes first.") % {
            "name": volume.name,
            "vm": machine.name,
        }
    return why_busy(disks)


def why_cloud_attaches(volume: Volume) -> str:
    if get_driver(volume.location).attaches:
        return ""
    return _("Volumes in %(location)s are attached and detached in the cloud itself. The portal shows the result.") % {
        "location": volume.location_id
    }


def request_volume_deletion(*, volume: Volume, user: User, confirmation: str) -> Volume:
    """Accept the deletion, which ends the charge and the schedules at once. Its snapshots stay. No-op if already accepted.

    It goes to the recycle bin unless that is turned off. `confirmation` has to be the volume's name. Raises InvalidState,
    WrongConfirmation.
    """
    with transaction.atomic():
        volume = lock_volume(volume, user)
        if volume.delete_requested_at:
            return volume
        if reason := why_not_deletable(volume):
            raise InvalidState(reason)
        if not is_same_name(confirmation, volume.name):
            raise WrongConfirmation(
                _("That is not the volume's name. Type “%(name)s” to delete it.") % {"name": volume.name}
            )
        at = timezone.now()
        if goes_to_bin(volume):
            put_in_bin(volume, at=at, user=user)
        else:
            accepted = Volume.objects.filter(pk=volume.pk, state=volume.state, delete_requested_at=None)
            accepted.update(state=Volume.State.DELETING, delete_requested_at=at)
            create_operation(kind=Operation.Kind.DELETE_VOLUME, volume=volume, requested_by=user)
        stop_charging_volume(volume, at=at)
        end_schedules_of(volume, at)
    volume.refresh_from_db()
    return volume


def why_not_deletable(volume: Volume) -> str:
    """Return why the volume can't be deleted now, or an empty string."""
    if reason := why_gone(volume):
        return reason
    if volume.state == Volume.State.CREATING:
        return _("“%(name)s” is still being created. Cancel that instead.") % {"name": volume.name}
    driver = get_driver(volume.location)
    if machine := machine_of(volume):
        text = (
            _("“%(name)s” is attached to %(vm)s. Detach it first.")
            if driver.attaches
            else _("“%(name)s” is attached to %(vm)s. Detach it in the cloud first.")
        )
        return text % {"name": volume.name, "vm": machine.name}
    count = 0 if driver.deletes_with_snapshots else snapshots_in_cloud(volume)
    if count:
        return ngettext(
            "The storage of %(location)s can't delete a volume that has snapshots. Delete its snapshot first.",
            "The storage of %(location)s can't delete a volume that has snapshots. Delete its %(count)s snapshots first.",
            count,
        ) % {"location": volume.location_id, "count": count}
    return why_busy([volume])


def snapshots_in_cloud(volume: Volume) -> int:
    """Count the snapshots of the volume that the cloud has, also in the recycle bin. Safety snapshots are volumes there."""
    disks = DiskImage.objects.filter(in_storage("snapshot__"), volume=volume, captured_at__isnull=False)
    return disks.filter(snapshot__missing_since=None, snapshot__protects=None).count()


def retry_volume_operation(*, operation: Operation, user: User) -> Operation:
    """Request a failed operation on a volume again, as a new one, after the checks of a first request.

    Raises InvalidState if it didn't fail or was requested again already, and any ActionRefused of its kind.
    """
    volume, kinds = operation.volume, Operation.Kind
    assert volume is not None  # held by the constraint operation_target
    nothing_to_retry = InvalidState(_("There is nothing to retry: it didn't fail, or it was already retried."))
    if operation.state != Operation.State.FAILED:
        raise nothing_to_retry
    if operation.kind == kinds.EXTEND_VOLUME:
        return request_extension(volume=volume, user=user, size_gb=operation.new_size_gb or 0)
    if operation.kind == kinds.CREATE_VOLUME:
        check_size(volume.location, volume.size_gb)
        check_space(volume.location)
    with transaction.atomic():
        volume = lock_volume(volume, user)
        limits.check_rate_limit(volume.customer_id, kinds(operation.kind))
        active = Operation.objects.active().filter(volume=volume)
        if operation.kind == kinds.CREATE_VOLUME:
            if volume.state != Volume.State.ERROR or volume.available_at:
                raise nothing_to_retry
            check_open(volume.location)
            active.filter(kind=kinds.CLEAN_UP, state=Operation.State.PENDING).delete()
            if active.exists():
                raise InvalidState(
                    _("The storage is still cleaning up after the failed attempt. Try again when it has finished.")
                )
            check_new_volume(volume.project, volume.location, volume.backend_project, volume.size_gb)
            failed = Volume.objects.filter(pk=volume.pk, state=Volume.State.ERROR)
            failed.update(state=Volume.State.CREATING, deleted_at=None)
        elif volume.state != Volume.State.DELETING or volume.deleted_at or active.exists():
            raise nothing_to_retry
        return create_operation(kind=operation.kind, volume=volume, requested_by=user)


def lock_volume(volume: Volume, user: User) -> Volume:
    """Take the customer's lock, read the volume again, and require that the user may change it."""
    lock_customer(volume.customer_id)
    volume = Volume.objects.select_related("project__customer", "location", "vm").get(pk=volume.pk)
    checks.require_change(User.objects.get(pk=user.pk), volume.project_id)
    return volume


def machine_of(volume: Volume) -> VirtualMachine | None:
    """Return the machine that the volume is attached to, unless that was deleted."""
    return volume.vm if volume.vm and volume.vm.deleted_at is None else None


def why_gone(volume: Volume) -> str:
    if volume.is_in_bin:
        return _("“%(name)s” is in the recycle bin. Put it back first.") % {"name": volume.name}
    if volume.deleted_at:
        return _("“%(name)s” has been deleted.") % {"name": volume.name}
    if volume.delete_requested_at:
        return _("“%(name)s” is being deleted.") % {"name": volume.name}
    return ""


def why_not_usable(volume: Volume) -> str:
    if reason := why_gone(volume):
        return reason
    if volume.state != Volume.State.AVAILABLE:
        return _("“%(name)s” is not usable yet. Wait until it is available.") % {"name": volume.name}
    return ""


def why_busy(volumes: list[Volume]) -> str:
    """Return which operation or capture uses one of the volumes, or an empty string."""
    if operation := checks.writers(volumes).first():
        return _("An operation is using it (%(operation)s). Try again when that has finished.") % {
            "operation": operation.get_kind_display()
        }
    if capture := checks.unfinished_captures(volumes).first():
        return _("The snapshot or backup “%(name)s” is being taken of it. Try again when that is ready.") % {
            "name": capture.name
        }
    return ""
