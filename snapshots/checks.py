"""Preconditions of actions. Pages call these to explain, services to refuse.

Each raises an ActionRefused with a message for the customer.
"""

from collections.abc import Iterable
from datetime import datetime
from typing import TypeVar
from uuid import UUID

import structlog
from django.core.exceptions import PermissionDenied, ValidationError
from django.db.models import F, IntegerField, Q, QuerySet, Sum
from django.db.models.functions import Coalesce
from django.utils import timezone
from django.utils.translation import gettext as _

from billing import errors as billing
from billing.balance import require_cover
from billing.models import MAX_SIZE_GB, ServiceKind
from billing.pricing.prices import PriceList, Quote, get_quote
from cng_portal.accounts.models import Customer, Project, User
from cng_portal.common.money import format_amount, format_count, format_price
from cng_portal.common.names import MAX_NAME_LENGTH, clean_name, fold_name, is_same_name
from cng_portal.inventory.models import VirtualMachine, Volume
from cng_portal.support.services import contact_support

from .errors import (
    DamagedSnapshot,
    InsufficientCredit,
    InvalidState,
    NameTaken,
    NotSold,
    OutOfSpace,
    PriceChanged,
    SourceUnavailable,
    WrongOverride,
)
from .limits import check_cloud_quota, check_snapshot_quota
from .models import (
    SERVICE_KINDS,
    BackupSchedule,
    DiskImage,
    Kind,
    Operation,
    OperationQuerySet,
    Snapshot,
    State,
    volume_ref,
)
from .storage.contract import GIB, VERIFICATION_VALID_FOR, StorageError
from .storage.registry import get_driver

logger = structlog.stdlib.get_logger(__name__)

# The source of a snapshot: one volume, or all volumes of a machine together.
Source = Volume | VirtualMachine
S = TypeVar("S", bound=Source)


def require_change(user: User, project_id: UUID) -> None:
    """Raise PermissionDenied for viewers and in archived projects. Strangers have had a 404 before."""
    if not user.can_change(project_id):
        if any(project.id == project_id and project.archived_at for project in user.project_roles):
            raise PermissionDenied(
                _("The project is archived, so nothing in it can be changed. An owner of the project can unarchive it.")
            )
        raise PermissionDenied(
            _("You can see this project, but your role “Viewer” does not allow changes. Ask an owner of the project.")
        )


def require_change_of_source(user: User, snapshot: Snapshot, volumes: Iterable[Volume]) -> None:
    """Raise PermissionDenied unless the user may overwrite the snapshot's source and its `volumes`."""
    source = snapshot.source
    if not all(user.can_change(project_id) for project_id in {source.project_id, *(v.project_id for v in volumes)}):
        raise PermissionDenied(
            _(
                "Restoring overwrites “%(name)s”, so you need to be a member or owner of its project, too. Make a new "
                "volume from the snapshot instead."
            )
            % {"name": source.name}
        )


def reload_project(project: Project, customer_id: UUID) -> Project:
    """Read the row again, after the customer's lock was taken. Raises InvalidState if it is another customer's."""
    project = Project.objects.select_related("customer").get(pk=project.pk)
    if project.customer_id != customer_id:
        raise InvalidState(_("The project belongs to another account. Choose a project of the same account."))
    return project


def kind_of(source: Source) -> Kind:
    return Kind.VOLUME if isinstance(source, Volume) else Kind.VM


def volumes_of(source: Source) -> list[Volume]:
    """Return the volumes that a snapshot captures, the root volume first."""
    if isinstance(source, Volume):
        return [source]
    disks = Volume.objects.present().filter(vm=source).select_related("location", "project")
    return list(disks.order_by("position", "name", "id"))


def size_of(source: Source) -> int:
    """Return the GB of all its volumes."""
    return sum(volume.size_gb for volume in volumes_of(source))


def reload_source(source: S) -> S:
    """Read the row again, after the customer's lock was taken."""
    return type(source).objects.select_related("project__customer", "location").get(pk=source.pk)  # type: ignore[return-value]


def reload_snapshot(snapshot: Snapshot) -> Snapshot:
    """Read the row again, after the customer's lock was taken."""
    return Snapshot.objects.select_related("project__customer", "location", "volume__location", "vm__location").get(
        pk=snapshot.pk
    )


def require_ready(snapshot: Snapshot) -> None:
    """Raise InvalidState unless the snapshot is Ready and still in the cloud."""
    if snapshot.state != State.READY:
        raise InvalidState(
            _("“%(name)s” is not ready (%(state)s).") % {"name": snapshot.name, "state": snapshot.get_state_display()}
        )
    if snapshot.missing_since is not None:
        raise InvalidState(
            _(
                "The snapshot “%(name)s” was deleted in the cloud, outside the portal. You can only delete it here as well."
            )
            % {"name": snapshot.name}
        )


def check_source(source: Source) -> list[Volume]:
    """Return the volumes that a snapshot captures. Raises SourceUnavailable unless each of them can be captured now."""
    if source.deleted_at is not None:
        raise SourceUnavailable(_("“%(name)s” has been deleted. Choose another one.") % {"name": source.name})
    if not source.location.active:
        raise SourceUnavailable(
            _("The location %(code)s is closed for new snapshots. Choose something elsewhere, or ask your provider.")
            % {"code": source.location_id}
            + contact_support()
        )
    volumes = volumes_of(source)
    if not volumes:
        raise SourceUnavailable(
            _("The instance “%(name)s” has no volume, so there is nothing to capture. Choose another one.")
            % {"name": source.name}
        )
    for volume in volumes:
        if volume.delete_requested_at:
            raise SourceUnavailable(
                _("The volume “%(name)s” is being deleted. Choose another one.") % {"name": volume.name}
            )
        if volume.state != Volume.State.AVAILABLE:
            raise SourceUnavailable(
                _("The volume “%(name)s” is not usable yet. Wait until it is available, or choose another one.")
                % {"name": volume.name}
            )
        if volume.location_id != source.location_id:
            raise SourceUnavailable(
                _("The volume “%(name)s” is in another location than its instance. Ask your provider.")
                % {"name": volume.name}
                + contact_support()
            )
    if operation := writers(volumes).first():
        text = (
            _("“%(name)s” is being restored right now. Try again when that has ended.")
            if operation.kind == Operation.Kind.RESTORE
            else _("“%(name)s” is in use (%(operation)s). Try again when that has finished.")
        )
        raise SourceUnavailable(text % {"name": source.name, "operation": operation.get_kind_display()})
    return volumes


def writers(volumes: list[Volume]) -> OperationQuerySet:
    """Return the active operations that write to these volumes or to their machines."""
    machines = {volume.vm_id for volume in volumes if volume.vm_id}
    return Operation.objects.active().filter(
        Q(volume__in=volumes) | Q(vm__in=machines) | Q(vm__isnull=False, snapshot__disks__volume__in=volumes)
    )


def unfinished_captures(volumes: list[Volume]) -> QuerySet[Snapshot]:
    """Return the snapshots and backups of these volumes that are being taken."""
    return Snapshot.objects.filter(
        disks__volume__in=volumes, deleted_at=None, state__in=[State.PENDING, State.CREATING]
    )


def check_capturable(source: Source, *, project: Project | None = None, safety: bool = False) -> list[Volume]:
    """Check the source and the quotas, and return the volumes to capture.

    `project` is the snapshot's, by default the source's. `safety` is for the snapshot taken before a restore, which some
    engines keep as volumes.
    """
    volumes = check_source(source)
    size_gb = sum(volume.size_gb for volume in volumes)
    if size_gb > MAX_SIZE_GB:  # its charge could not be computed
        raise SourceUnavailable(
            _(
                "“%(name)s” has volumes of %(size)s GB together, and a snapshot holds at most %(most)s GB. Detach some of "
                "them, or take snapshots of single volumes."
            )
            % {"name": source.name, "size": format_count(size_gb), "most": format_count(MAX_SIZE_GB)}
        )
    check_snapshot_quota(project or source.project, sum(volume.size_gb for volume in volumes))
    kind = "volumes" if safety and get_driver(source.location).reverts_only_latest else "snapshots"
    for backend_project in {volume.backend_project for volume in volumes}:
        sizes = [volume.size_gb for volume in volumes if volume.backend_project == backend_project]
        check_cloud_quota(source.location_id, backend_project, **{kind: len(sizes), "gb": sum(sizes)})
    return volumes


def check_deliverable(
    source: Source,
    at: datetime | None = None,
    *,
    project: Project | None = None,
    kind: str | None = None,
    safety: bool = False,
) -> Quote:
    """Check everything but the name of a new snapshot, or of a backup if `kind` says so, and return its price.

    `project` is the snapshot's, by default the source's.
    """
    volumes = check_capturable(source, project=project, safety=safety)
    return check_affordable(source, volumes, kind=kind, at=at)


def check_affordable(
    source: Source, volumes: Iterable[Volume], *, kind: str | None = None, at: datetime | None = None
) -> Quote:
    """Return the price of capturing the volumes. Raises NotSold, and InsufficientCredit unless its first hour is covered."""
    at = at or timezone.now()
    quote = quote_size(source, sum(volume.size_gb for volume in volumes), kind=kind, at=at)
    check_cover(source.project.customer, quote.hourly_micro, at=at)
    return quote


def check_space(source: Source, volumes: Iterable[Volume] | None = None) -> None:
    """Raise OutOfSpace unless a capture fits. Call it outside a transaction, because it may go over the network.

    `volumes` are those of the source, if the caller has them.
    """
    try:
        driver = get_driver(source.location)
        captured = [volume_ref(volume) for volume in (volumes_of(source) if volumes is None else volumes)]
        needed, free = driver.bytes_needed(captured), driver.free_bytes()
    except StorageError as error:
        raise OutOfSpace(str(error)) from error
    require_space(source.location_id, needed, free)


def require_space(location: str, needed: int, free: int | None) -> None:
    if free is not None and needed >= free:  # `>=`, because a clone needs none but can't be made on a full disk
        raise OutOfSpace(
            _(
                "The storage of %(location)s is too full: this may need %(needed).1f GB and %(free).1f GB are "
                "free. Nothing was created. Ask your provider, or delete snapshots that you no longer need."
            )
            % {"location": location, "needed": needed / GIB, "free": free / GIB}
            + contact_support()
        )


def quote_for(source: Source, *, kind: str | None = None, at: datetime | None = None) -> Quote:
    """Return today's price of a snapshot, or of a backup if `kind` says so. Raises NotSold."""
    return quote_size(source, size_of(source), kind=kind, at=at)


def quote_size(source: Source, size_gb: int, *, kind: str | None = None, at: datetime | None = None) -> Quote:
    """Return today's price of `size_gb` captured of `source`. Raises NotSold."""
    try:
        return get_quote(
            customer=source.project.customer,
            location=source.location,
            kind=SERVICE_KINDS[Kind(kind or kind_of(source))],
            size_gb=size_gb,
            at=at or timezone.now(),
        )
    except billing.NotSold as error:
        raise NotSold(str(error)) from error


def check_shown_price(quote: Quote, shown_hourly_micro: int | None) -> None:
    """Raise PriceChanged unless the price that the user saw is today's."""
    if shown_hourly_micro is not None and shown_hourly_micro != quote.hourly_micro:
        logger.warning("price.changed", shown_hourly_micro=shown_hourly_micro, hourly_micro=quote.hourly_micro)
        raise PriceChanged(
            _("The price has changed to %(price)s an hour since it was shown. Check it and confirm again.")
            % {"price": format_price(quote.hourly_micro, quote.currency)},
            quote,
        )


def check_shown_total(total_micro: int, shown_micro: int | None, quote: Quote) -> None:
    """Raise PriceChanged if the total is more than the user saw."""
    if shown_micro is not None and total_micro > shown_micro:
        raise PriceChanged(
            _("The charge has risen to %(total)s since it was shown. Check it and confirm again.")
            % {"total": format_amount(total_micro, quote.currency)},
            quote,
        )


def check_cover(customer: Customer, hourly_micro: int, *, at: datetime) -> None:
    """Raise InsufficientCredit unless the credits cover one more hour of `hourly_micro`."""
    try:
        require_cover(
            customer=customer, hourly_micro=hourly_micro, at=at, reserved_micro=reserved_micro(customer, at=at)
        )
    except billing.InsufficientCredit as error:
        raise InsufficientCredit(str(error)) from error


def reserved_micro(customer: Customer, *, at: datetime) -> int:
    """Return the price of the first hour of all that is being taken, created or grown, which isn't charged yet."""
    # Automatic backups are not charged per GB.
    unfinished = Snapshot.objects.filter(
        customer=customer, deleted_at=None, state__in=[State.PENDING, State.CREATING]
    ).exclude(run__schedule__origin=BackupSchedule.Origin.AUTOMATIC)
    by_kind = unfinished.order_by().values_list("kind", "location_id").annotate(size_gb=Sum("size_gb"))
    sizes = [(SERVICE_KINDS[Kind(kind)], location, size_gb) for kind, location, size_gb in by_kind]
    kinds = [Operation.Kind.CREATE_VOLUME, Operation.Kind.NEW_VOLUME, Operation.Kind.EXTEND_VOLUME]
    volumes = Operation.objects.active().filter(kind__in=kinds, volume__project__customer=customer).order_by()
    more_gb = Sum(Coalesce(F("new_size_gb") - F("volume__size_gb"), F("volume__size_gb"), output_field=IntegerField()))
    by_location = volumes.values_list("volume__location_id").annotate(size_gb=more_gb)
    sizes += [(ServiceKind.BLOCK_STORAGE, location, size_gb) for location, size_gb in by_location]
    if not sizes:
        return 0
    prices = PriceList.load({location for _kind, location, _size_gb in sizes})
    return sum(
        prices.hourly_micro(kind, location, customer.currency, at, size_gb=size_gb)
        for kind, location, size_gb in sizes
        if kind != ServiceKind.BLOCK_STORAGE or prices.sold_rate(kind, location, customer.currency, at) is not None
    )


def check_name(customer_id: UUID, name: str, *, exclude: UUID | None = None) -> str:
    """Return the cleaned name, or raise NameTaken if it is invalid or another snapshot of the customer has it."""
    try:
        name = clean_name(name)
    except ValidationError as error:
        raise NameTaken(error.messages[0], "") from error
    same = Snapshot.objects.filter(customer_id=customer_id, deleted_at=None, name_key=fold_name(name)).exclude(
        pk=exclude
    )
    if same.exists():
        suggestion = free_name(customer_id, name)
        raise NameTaken(
            _("Another snapshot has the name “%(name)s”. Names are unique; “%(free)s” is free.")
            % {"name": name, "free": suggestion},
            suggestion,
        )
    return name


def free_name(customer_id: UUID, wanted: str) -> str:
    """Return `wanted`, with the lowest number appended that makes it unique among the customer's snapshots."""
    wanted = wanted.strip()[:MAX_NAME_LENGTH] or _("snapshot")
    stem = wanted[: MAX_NAME_LENGTH - 6]
    taken = set(
        Snapshot.objects.filter(
            customer_id=customer_id, deleted_at=None, name_key__startswith=fold_name(stem)
        ).values_list("name_key", flat=True)
    )
    candidate, number = wanted, 1
    while fold_name(candidate) in taken:
        number += 1
        candidate = f"{stem}-{number}"
    return candidate


def suggest_name(source: Source, *, at: datetime | None = None) -> str:
    """Return a free name such as `web-01-root-2026-11-22`, with the day in the reader's time zone."""
    day = timezone.localtime(at or timezone.now()).date().isoformat()
    return free_name(source.project.customer_id, f"{source.name[: MAX_NAME_LENGTH - 17]}-{day}")


def is_unchecked(snapshot: Snapshot, override: str) -> bool:
    """Return whether to use the snapshot's bytes without verifying them, for which the user types its name.

    Raises WrongOverride if another name was typed, and DamagedSnapshot if it is damaged and nothing was typed.
    """
    if override.strip():
        if not is_same_name(override, snapshot.name):
            raise WrongOverride(
                _("That is not the snapshot's name. Type “%(name)s” to use it without checking.")
                % {"name": snapshot.name}
            )
        return True
    if snapshot.is_damaged:
        raise DamagedSnapshot(
            _("“%(name)s” is damaged. Type its name to use it anyway, or choose another snapshot.")
            % {"name": snapshot.name}
        )
    return False


def is_verified_first(snapshot: Snapshot, disks: Iterable[DiskImage]) -> bool:
    """Return whether all disks are verified before use, which the user may skip."""
    try:
        clones = get_driver(snapshot.location).clones
    except StorageError:
        return False
    oldest = timezone.now() - VERIFICATION_VALID_FOR
    return clones and any(disk.verified_at is None or disk.verified_at < oldest for disk in disks)
