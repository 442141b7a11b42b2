"""New volumes and machines from a snapshot."""

from django.db import transaction
from django.utils.translation import gettext as _

from cng_portal.accounts.models import Project, User
from cng_portal.accounts.services import lock_customer
from cng_portal.common.names import MAX_NAME_LENGTH
from cng_portal.inventory.models import VirtualMachine, Volume

from .. import checks, limits
from ..errors import InvalidState, OutOfSpace
from ..models import DiskImage, Draft, Operation, Snapshot
from ..operations.lifecycle import create_operation
from ..storage.contract import StorageError
from ..storage.registry import get_driver
from .services import check_price, check_size, find_created_volume


def request_new_volume(
    *,
    snapshot: Snapshot,
    user: User,
    project: Project,
    name: str,
    size_gb: int,
    disk: DiskImage | None = None,
    override: str = "",
    shown_hourly_micro: int | None = None,
    draft: Draft | None = None,
    note: str | None = None,
    metadata: dict[str, str] | None = None,
) -> Operation:
    """Request a new volume from a disk of the snapshot, which may be omitted if there is only one.

    `shown_hourly_micro` is the price that the user saw. The same draft again returns the operation that it led to first.
    Raises InvalidState, RateLimited, QuotaExceeded, OutOfSpace, InsufficientCredit, PriceChanged, and what `is_unchecked`
    raises for the `override`.
    """
    check_size(snapshot.location, size_gb)
    check_space_for_new_volumes(snapshot, [disk] if disk else list(snapshot.disks.all()))
    with transaction.atomic():
        lock_customer(snapshot.customer_id)
        if draft and (created := find_created_volume(draft)):
            return created.operations.filter(kind=Operation.Kind.NEW_VOLUME).latest("created_at")
        snapshot = checks.reload_snapshot(snapshot)
        check_usable_in(snapshot, project, user)
        unchecked = checks.is_unchecked(snapshot, override)
        disk = disk or only_disk(snapshot)
        check_disk_fits(disk, size_gb)
        limits.check_volume_quota(project.pk, [size_gb])
        limits.check_cloud_quota(snapshot.location_id, disk.volume.backend_project, volumes=1, gb=size_gb)
        limits.check_rate_limit(snapshot.customer_id, Operation.Kind.NEW_VOLUME)
        check_price(project, snapshot.location, size_gb, shown_hourly_micro)
        operation = create_volume_row(
            disk,
            project=project,
            name=name.strip(),
            size_gb=size_gb,
            user=user,
            unchecked=unchecked,
            note=note,
            metadata=metadata,
        )
        if draft:
            Draft.objects.filter(pk=draft.pk).update(created_volume=operation.volume)
        return operation


def request_new_machine(
    *, snapshot: Snapshot, user: User, project: Project, name: str, override: str = ""
) -> VirtualMachine:
    """Request a stopped machine like the captured one, with a new volume for each disk.

    Raises InvalidState, RateLimited, QuotaExceeded, OutOfSpace, InsufficientCredit, and what `is_unchecked` raises for the
    `override`.
    """
    check_space_for_new_volumes(snapshot, list(snapshot.disks.all()))
    with transaction.atomic():
        lock_customer(snapshot.customer_id)
        snapshot = checks.reload_snapshot(snapshot)
        check_usable_in(snapshot, project, user)
        unchecked = checks.is_unchecked(snapshot, override)
        disks = list(snapshot.disks.select_related("volume").order_by("position"))
        if not disks:  # fsck reports it to the operator.
            raise InvalidState(
                _("The snapshot has no disks, so no instance can be created from it. Ask your provider.")
            )
        limits.check_rate_limit(snapshot.customer_id, Operation.Kind.NEW_VOLUME, more=len(disks))
        size_gb = sum(disk.size_gb for disk in disks)
        limits.check_volume_quota(project.pk, [disk.size_gb for disk in disks])
        limits.check_cloud_quota(snapshot.location_id, disks[0].volume.backend_project, volumes=len(disks), gb=size_gb)
        check_price(project, snapshot.location, size_gb)
        config = snapshot.vm_config
        vm = VirtualMachine.objects.create(
            project=project,
            location_id=snapshot.location_id,
            name=name.strip(),
            state=VirtualMachine.State.STOPPED,
            vcpus=config["vcpus"],
            memory_mb=config["memory_mb"],
            hourly_price_micro=config["hourly_price_micro"],
        )
        for disk in disks:
            name = f"{vm.name}-{disk.volume_name}"[:MAX_NAME_LENGTH]
            create_volume_row(
                disk, project=project, name=name, size_gb=disk.size_gb, user=user, vm=vm, unchecked=unchecked
            )
    return vm


def check_space_for_new_volumes(snapshot: Snapshot, disks: list[DiskImage]) -> None:
    """Raise OutOfSpace unless copies of these disks fit, without their holes. Call it outside a transaction."""
    try:
        driver = get_driver(snapshot.location)
        needed = 0 if driver.shares_blocks else sum(disk.allocated_bytes or 0 for disk in disks)
        free = driver.free_bytes()
    except StorageError as error:
        raise OutOfSpace(str(error)) from error
    checks.require_space(snapshot.location_id, needed, free)


def check_disk_fits(disk: DiskImage, size_gb: int) -> None:
    if size_gb < disk.size_gb:
        raise InvalidState(
            _("The volume needs at least %(size)s GB, the size of the captured disk.") % {"size": disk.size_gb}
        )


def only_disk(snapshot: Snapshot) -> DiskImage:
    disks = list(snapshot.disks.all()[:2])
    if len(disks) != 1:
        raise InvalidState(
            (
                _("“%(name)s” has several disks. Choose the one that the new volume is created from.")
                if disks
                else _("“%(name)s” has no disks, so no volume can be created from it. Ask your provider.")
            )
            % {"name": snapshot.name}
        )
    return disks[0]


def check_usable_in(snapshot: Snapshot, project: Project, user: User) -> None:
    """Raise unless the user may make something in the project from the snapshot."""
    user = User.objects.get(pk=user.pk)
    checks.require_change(user, snapshot.project_id)
    checks.require_change(user, project.pk)
    checks.require_ready(snapshot)
    if project.customer_id != snapshot.customer_id:
        raise InvalidState(_("The project belongs to another account. Choose a project of the snapshot's account."))


def create_volume_row(
    disk: DiskImage,
    *,
    project: Project,
    name: str,
    size_gb: int,
    user: User,
    vm: VirtualMachine | None = None,
    unchecked: bool = False,
    note: str | None = None,
    metadata: dict[str, str] | None = None,
) -> Operation:
    """Create the volume and its operation. The caller must hold the customer's lock and have made the checks."""
    volume = Volume.objects.create(
        project=project,
        location_id=disk.snapshot.location_id,
        vm=vm,
        position=disk.position if vm else 0,
        name=name,
        size_gb=size_gb,
        state=Volume.State.CREATING,
        backend_project=disk.volume.backend_project,
        note=note,
        metadata=metadata,
    )
    return create_operation(
        kind=Operation.Kind.NEW_VOLUME,
        snapshot=disk.snapshot,
        disk=disk,
        volume=volume,
        unchecked=unchecked,
        requested_by=user,
    )
