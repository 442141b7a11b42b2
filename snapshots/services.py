"""The one door for everything that a person asks of snapshots: view, command and admin come through here.

Each function validates, writes in one transaction that holds the customer's lock, and returns the object; or raises a
`ActionRefused`, whose text is for the person, with nothing written.
"""

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, TypeVar
from uuid import UUID, uuid4

from django.conf import settings
from django.core.exceptions import PermissionDenied, ValidationError
from django.db import transaction
from django.db.models import Count, Exists, Max, OuterRef, Q, QuerySet, Sum
from django.utils import timezone
from django.utils.translation import gettext as _

from billing import errors as billing
from billing.balance import require_cover
from billing.money import format_price
from billing.prices import Quote, get_quote, price_at, prices_by_place
from billing.usage import rename_resource
from cng_portal.accounts.models import UNLIMITED, Customer, Project, User
from cng_portal.accounts.services import lock_customer
from cng_portal.activity import services as activity
from cng_portal.common.names import MAX_NAME_LENGTH, clean_name, fold_name, is_same_name
from cng_portal.inventory.models import CloudProject, VirtualMachine, Volume

from . import limits
from .charging import stop_charging
from .models import (
    SERVICE_KINDS,
    BackupRun,
    BackupSchedule,
    DeletionCause,
    DiskImage,
    Draft,
    Kind,
    Operation,
    OperationQuerySet,
    Snapshot,
    State,
)
from .operations import create_operation
from .storage.contract import GIB, VERIFICATION_VALID_FOR, StorageError
from .storage.registry import get_driver
from .tasks import volume_ref


class ActionRefused(Exception):
    """Why it was not done: what happened, what it means, what to do."""


class NameTaken(ActionRefused):
    """The name is taken, missing or too long; `suggestion` is a free one."""

    def __init__(self, message: str, suggestion: str) -> None:
        super().__init__(message)
        self.suggestion = suggestion


class QuotaExceeded(ActionRefused):
    pass


class OutOfSpace(ActionRefused):
    """The location's storage is too full for the capture, or cannot be asked."""


class NotSold(ActionRefused):
    pass


class InsufficientCredit(ActionRefused):
    pass


class SourceUnavailable(ActionRefused):
    """The volume, project or location is not there any more, or cannot be used now."""


class PriceChanged(ActionRefused):
    """The price is not the one that was shown; `quote` is today's."""

    def __init__(self, message: str, quote: Quote) -> None:
        super().__init__(message)
        self.quote = quote


class WrongConfirmation(ActionRefused):
    pass


class DamagedSnapshot(ActionRefused):
    """Its bytes aren't what was captured. Whoever uses them anyway types the snapshot's name."""


class WrongOverride(ActionRefused):
    """Something was typed to use a snapshot unchecked, but not its name."""


class InvalidState(ActionRefused):
    """Its state does not allow it."""


class RateLimited(ActionRefused):
    """The account has asked for as many as it may within an hour."""


# More ids than this make an address that web servers refuse, and more rows than a person reads before confirming.
DELETED_AT_ONCE = 50

logger = logging.getLogger(__name__)

# What a snapshot is taken of: one disk, or all disks of a machine together.
Source = Volume | VirtualMachine
S = TypeVar("S", bound=Source)


# --- questions -------------------------------------------------------------------------------------------------------


def require_change(user: User, project_id: UUID) -> None:
    """403 with an explanation for who sees the project but may not change it; who does not see it was given a 404
    before.
    """
    if not user.can_change(project_id):
        raise PermissionDenied(
            _("You can see this project, but your role “Viewer” does not allow changes. Ask an owner of the project.")
        )


def kind_of(source: Source) -> Kind:
    return Kind.VOLUME if isinstance(source, Volume) else Kind.VM


def volumes_of(source: Source) -> list[Volume]:
    """The disks that a snapshot of it captures, in their order: the root volume of a machine comes first."""
    if isinstance(source, Volume):
        return [source]
    disks = Volume.objects.present().filter(vm=source).select_related("location")
    return list(disks.order_by("position", "name", "id"))


def size_of(source: Source) -> int:
    """GB of all its disks."""
    return sum(volume.size_gb for volume in volumes_of(source))


def reload_source(source: S) -> S:
    """The row as it is now, with what the checks read."""
    found: S = type(source).objects.select_related("project__customer", "location").get(pk=source.pk)  # type: ignore[assignment]
    return found


@dataclass(frozen=True)
class QuotaUse:
    """How much of one limit is used; `limit` is UNLIMITED or a number."""

    label: str
    used: int
    limit: int

    @property
    def is_limited(self) -> bool:
        return self.limit != UNLIMITED

    def admits(self, more: int) -> bool:
        return not self.is_limited or self.used + more <= self.limit


def quota_use(project: Project) -> list[QuotaUse]:
    """The limits that apply to a new snapshot in this project: the customer's two and the project's two. One query, or
    none where they are all unlimited.
    """
    customer = project.customer
    if all(limit == UNLIMITED for one in (customer, project) for limit in (one.snapshot_quota, one.snapshot_gb_quota)):
        return []
    counted = Snapshot.objects.filter(customer=customer, deleted_at=None, kind__in=Kind.values).counted()
    in_project = Q(project=project)
    used = counted.aggregate(
        count=Count("pk"),
        gb=Sum("size_gb", default=0),
        project_count=Count("pk", filter=in_project),
        project_gb=Sum("size_gb", filter=in_project, default=0),
    )
    return [
        QuotaUse(_("snapshots of your account"), used["count"], customer.snapshot_quota),
        QuotaUse(_("GB of snapshots of your account"), used["gb"], customer.snapshot_gb_quota),
        QuotaUse(_("snapshots of the project"), used["project_count"], project.snapshot_quota),
        QuotaUse(_("GB of snapshots of the project"), used["project_gb"], project.snapshot_gb_quota),
    ]


def check_quota(project: Project, size_gb: int) -> None:
    for use, more in zip(quota_use(project), (1, size_gb, 1, size_gb), strict=False):
        require_quota(use, more)


def volume_quota_use(project: Project) -> list[QuotaUse]:
    """The limits that apply to a new volume in this project, in the order of `quota_use`. One query."""
    customer = project.customer
    in_project = Q(project=project)
    used = (
        Volume.objects.present()
        .filter(project__customer=customer)
        .aggregate(
            count=Count("pk"),
            gb=Sum("size_gb", default=0),
            project_count=Count("pk", filter=in_project),
            project_gb=Sum("size_gb", filter=in_project, default=0),
        )
    )
    return [
        QuotaUse(_("volumes of your account"), used["count"], customer.volume_quota),
        QuotaUse(_("GB of volumes of your account"), used["gb"], customer.volume_gb_quota),
        QuotaUse(_("volumes of the project"), used["project_count"], project.volume_quota),
        QuotaUse(_("GB of volumes of the project"), used["project_gb"], project.volume_gb_quota),
    ]


def check_volume_quota(project_id: UUID, sizes_gb: list[int]) -> None:
    """Whether volumes of these sizes may be added. The caller holds the customer's lock. Raises QuotaExceeded."""
    project = Project.objects.select_related("customer").get(pk=project_id)
    more = (len(sizes_gb), sum(sizes_gb))
    for use, count in zip(volume_quota_use(project), more * 2, strict=True):
        require_quota(use, count)


def require_quota(use: QuotaUse, more: int) -> None:
    if not use.admits(more):
        raise QuotaExceeded(
            _(
                "Quota full: %(used)s of %(limit)s %(what)s are used and this one needs %(more)s. "
                "Delete what you no longer need, or ask support for a higher quota."
            )
            % {"used": use.used, "limit": use.limit, "what": use.label, "more": more}
        )


# The clouds are looked at every few minutes. Older figures say too little: then the cloud itself admits or refuses.
FIGURES_HOLD = timedelta(minutes=15)


def cloud_projects_of(**which: Any) -> QuerySet[CloudProject]:
    """Those whose quotas are recent enough to say something in advance."""
    since = timezone.now() - FIGURES_HOLD
    return CloudProject.objects.filter(synced_at__gte=since, missing_since=None, error="", **which)


def cloud_quota_use(cloud_project: CloudProject) -> dict[str, QuotaUse]:
    """The limits that the cloud itself sets: what the last look at it saw, and the snapshots that were asked for here or
    are gone since. One query.
    """
    since, kinds = cloud_project.synced_at, Operation.Kind
    asked = Q(kind=kinds.CAPTURE, created_at__gte=since) & ~Q(
        state__in=[Operation.State.FAILED, Operation.State.CANCELLED]
    )
    gone = Q(kind=kinds.DELETE, finished_at__gte=since, state=Operation.State.SUCCEEDED)
    work = Operation.objects.filter(
        asked | gone,
        snapshot__disks__volume__location=cloud_project.location_id,
        snapshot__disks__volume__backend_project=cloud_project.external_id,
    ).order_by()
    changes = work.values_list("kind").annotate(Count("snapshot__disks"), Sum("snapshot__disks__size_gb"))
    changed = {kind: (count, gb) for kind, count, gb in changes}
    more, less = (changed.get(kind, (0, 0)) for kind in (kinds.CAPTURE, kinds.DELETE))

    def use(label: str, seen: int | None, change: int, quota: int | None) -> QuotaUse:
        used, limit = max(0, (seen or 0) + change), UNLIMITED if quota is None or quota < 0 else quota
        if limit != UNLIMITED and change > 0:
            used = min(used, max(limit, seen or 0))  # some of the change may be in what was seen
        return QuotaUse(label % {"name": cloud_project}, used, limit)

    return {
        "snapshots": use(
            _("snapshots in the cloud project “%(name)s”"),
            cloud_project.snapshot_count,
            more[0] - less[0],
            cloud_project.snapshot_quota,
        ),
        "volumes": use(
            _("volumes in the cloud project “%(name)s”"), cloud_project.volume_count, 0, cloud_project.volume_quota
        ),
        "gb": use(
            _("GB of volumes and snapshots in the cloud project “%(name)s”"),
            cloud_project.used_gb,
            more[1] - less[1],
            cloud_project.gb_quota,
        ),
    }


def check_cloud_quota(location_id: str, backend_project: str, **more: int) -> None:
    """Whether the cloud itself will admit so many more `snapshots`, `volumes` and `gb`. What cannot be told is admitted."""
    if backend_project:
        for cloud_project in cloud_projects_of(location=location_id, external_id=backend_project):
            uses = cloud_quota_use(cloud_project)
            for what, count in more.items():
                require_quota(uses[what], count)


def check_pace(customer_id: UUID, kind: Operation.Kind, more: int = 1) -> None:
    """The caller holds the customer's lock. Raises RateLimited."""
    if again_at := limits.next_allowed(customer_id, kind, now=timezone.now(), more=more):
        logger.warning("Refused %s: the account has asked for as many as it may within an hour", kind)
        raise RateLimited(limits.explain(kind, again_at))


def quote_for(source: Source, *, kind: str | None = None, at: datetime | None = None) -> Quote:
    """Today's price of a snapshot of it, or of a backup where `kind` says so. Raises NotSold."""
    return quote_size(source, size_of(source), kind=kind, at=at)


def quote_size(source: Source, size_gb: int, *, kind: str | None = None, at: datetime | None = None) -> Quote:
    """Today's price of `size_gb` captured of it. Raises NotSold."""
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


def check_cover(customer: Customer, hourly_micro: int, *, at: datetime) -> None:
    """Raises InsufficientCredit unless the credits cover one more hour of `hourly_micro`."""
    try:
        require_cover(
            customer=customer, hourly_micro=hourly_micro, at=at, reserved_micro=reserved_micro(customer, at=at)
        )
    except billing.InsufficientCredit as error:
        raise InsufficientCredit(str(error)) from error


def reserved_micro(customer: Customer, *, at: datetime) -> int:
    """The first hour of every capture that has not ended: it has no usage segment yet, but its credits are spoken for."""
    # Automatic backups are not charged per GB.
    unfinished = Snapshot.objects.filter(
        customer=customer, deleted_at=None, state__in=[State.PENDING, State.CREATING]
    ).exclude(run__schedule__origin=BackupSchedule.Origin.AUTOMATIC)
    sizes = list(unfinished.order_by().values_list("kind", "location_id").annotate(gb=Sum("size_gb")))
    if not sizes:
        return 0
    prices = prices_by_place({code for _kind, code, _gb in sizes})
    total = 0
    for kind, code, gb in sizes:
        price = price_at(prices.get((SERVICE_KINDS[Kind(kind)], code), []), at)
        total += gb * price.rate_micro if price and price.is_sold else 0
    return total


def check_space(source: Source) -> None:
    """Ask the storage whether a capture fits. Not inside a transaction: it may be a call over the network."""
    try:
        driver = get_driver(source.location)
        needed, free = driver.bytes_needed([volume_ref(volume) for volume in volumes_of(source)]), driver.free_bytes()
    except StorageError as error:
        raise OutOfSpace(str(error)) from error
    require_space(source.location_id, needed, free)


def require_space(location: str, needed: int, free: int | None) -> None:
    if free is not None and needed >= free:  # a clone needs none, but some has to be left
        raise OutOfSpace(
            _(
                "The storage of %(location)s is too full: this may need %(needed).1f GB and %(free).1f GB are "
                "free. Nothing was created. Ask support, or delete snapshots that you no longer need."
            )
            % {"location": location, "needed": needed / GIB, "free": free / GIB}
        )


def check_source(source: Source) -> list[Volume]:
    """Return the volumes that a snapshot of `source` captures. Raises SourceUnavailable unless all can be captured."""
    if source.deleted_at is not None:
        raise SourceUnavailable(_("“%(name)s” has been deleted. Choose another one.") % {"name": source.name})
    if not source.location.active:
        raise SourceUnavailable(
            _("The location %(code)s is closed for new snapshots. Choose something elsewhere, or ask support.")
            % {"code": source.location_id}
        )
    volumes = volumes_of(source)
    if not volumes:
        raise SourceUnavailable(
            _("The virtual machine “%(name)s” has no volume, so there is nothing to capture. Choose another one.")
            % {"name": source.name}
        )
    for volume in volumes:
        if volume.state != Volume.State.AVAILABLE:
            raise SourceUnavailable(
                _("The volume “%(name)s” is not usable yet. Wait until it is available, or choose another one.")
                % {"name": volume.name}
            )
        if volume.location_id != source.location_id:
            raise SourceUnavailable(
                _("The volume “%(name)s” is in another location than its machine. Ask support.") % {"name": volume.name}
            )
    if writers(volumes).exists():
        raise SourceUnavailable(
            _("“%(name)s” is being restored right now. Try again when that has ended.") % {"name": source.name}
        )
    return volumes


def writers(volumes: list[Volume]) -> OperationQuerySet:
    """The unfinished operations that write to any of these volumes, or to a machine that has one of them."""
    machines = {volume.vm_id for volume in volumes if volume.vm_id}
    return Operation.objects.active().filter(
        Q(volume__in=volumes) | Q(vm__in=machines) | Q(vm__isnull=False, snapshot__disks__volume__in=volumes)
    )


def unfinished_captures(volumes: list[Volume]) -> QuerySet[Snapshot]:
    """The snapshots and backups of any of these volumes that are being taken."""
    return Snapshot.objects.filter(
        disks__volume__in=volumes, deleted_at=None, state__in=[State.PENDING, State.CREATING]
    )


def free_name(customer_id: UUID, wanted: str) -> str:
    """`wanted` if no snapshot of the customer has it, else with the lowest number that makes it free. One query."""
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
    """`web-01-root-2026-11-22`, in the reader's zone, made free."""
    day = timezone.localtime(at or timezone.now()).date().isoformat()
    return free_name(source.project.customer_id, f"{source.name[: MAX_NAME_LENGTH - 17]}-{day}")


def check_name(customer_id: UUID, name: str, *, but: UUID | None = None) -> str:
    """Return the cleaned name if no other snapshot of the customer has the same one. Raises NameTaken."""
    try:
        name = clean_name(name)
    except ValidationError as error:
        raise NameTaken(error.messages[0], "") from error
    same = Snapshot.objects.filter(customer_id=customer_id, deleted_at=None, name_key=fold_name(name)).exclude(pk=but)
    if same.exists():
        suggestion = free_name(customer_id, name)
        raise NameTaken(
            _("Another snapshot has the name “%(name)s”. Names are unique; “%(free)s” is free.")
            % {"name": name, "free": suggestion},
            suggestion,
        )
    return name


def check_capturable(source: Source, *, safety: bool = False) -> list[Volume]:
    """Return the disks to capture if the quotas admit them, or raise the first ActionRefused.

    `safety` is for what is kept before a restore, which some engines keep as copies of the volumes.
    """
    volumes = check_source(source)
    check_quota(source.project, sum(volume.size_gb for volume in volumes))
    kind = "volumes" if safety and get_driver(source.location).reverts_only_latest else "snapshots"
    for backend_project in {volume.backend_project for volume in volumes}:
        there = [volume.size_gb for volume in volumes if volume.backend_project == backend_project]
        check_cloud_quota(source.location_id, backend_project, **{kind: len(there), "gb": sum(there)})
    return volumes


def check_deliverable(
    source: Source,
    at: datetime | None = None,
    *,
    kind: str | None = None,
    safety: bool = False,
) -> Quote:
    """Everything that can be checked about a snapshot of it before its name, or about a backup where `kind` says so:
    raises the first ActionRefused. Returns its price.
    """
    at = at or timezone.now()
    volumes = check_capturable(source, safety=safety)
    quote = quote_size(source, sum(volume.size_gb for volume in volumes), kind=kind, at=at)
    check_cover(source.project.customer, quote.hourly_micro, at=at)
    return quote


def check_shown_price(quote: Quote, shown_hourly_micro: int | None) -> None:
    """Raises PriceChanged where the person saw another price than today's."""
    if shown_hourly_micro is not None and shown_hourly_micro != quote.hourly_micro:
        logger.warning("Refused a price of %s millionths an hour: it is %s", shown_hourly_micro, quote.hourly_micro)
        raise PriceChanged(
            _("The price has changed to %(price)s an hour since it was shown. Check it and confirm again.")
            % {"price": format_price(quote.hourly_micro, quote.currency)},
            quote,
        )


# --- acts ------------------------------------------------------------------------------------------------------------


def request_snapshot(
    *,
    source: Source,
    name: str,
    user: User,
    shown_hourly_micro: int | None = None,
    draft: Draft | None = None,
) -> Snapshot:
    """Ask for a snapshot of a volume or of a machine. The same draft again gives what it made the first time.

    `shown_hourly_micro` is the price that the person saw; another price today raises PriceChanged.
    Raises every ActionRefused.
    """
    check_space(source)
    with transaction.atomic():
        lock_customer(source.project.customer_id)
        if draft and (made := Snapshot.objects.filter(draft=draft).first()):
            return made
        source = reload_source(source)
        require_change(User.objects.get(pk=user.pk), source.project_id)
        check_pace(source.project.customer_id, Operation.Kind.CAPTURE)
        quote = check_deliverable(source)
        name = check_name(source.project.customer_id, name)
        check_shown_price(quote, shown_hourly_micro)
        snapshot = create_snapshot_row(source=source, volumes=volumes_of(source), name=name, user=user, draft=draft)
        create_operation(kind=Operation.Kind.CAPTURE, snapshot=snapshot, requested_by=user)
    return snapshot


def create_snapshot_row(
    *,
    source: Source,
    volumes: list[Volume],
    name: str,
    user: User | None,
    draft: Draft | None = None,
    kind: Kind | None = None,
) -> Snapshot:
    """The pending row and its disks; the caller holds the lock, has checked, and makes the operation."""
    kind = kind or kind_of(source)
    snapshot = Snapshot.objects.create(
        kind=kind,
        customer_id=source.project.customer_id,
        project=source.project,
        location=source.location,
        volume=source if isinstance(source, Volume) else None,
        vm=source if isinstance(source, VirtualMachine) else None,
        vm_config=describe_machine(source, volumes) if isinstance(source, VirtualMachine) else {},
        name=name,
        name_key=fold_name(name),
        size_gb=sum(volume.size_gb for volume in volumes),
        requested_by=user,
        draft=draft,
    )
    for position, volume in enumerate(volumes):
        DiskImage.objects.create(
            # a volume snapshot is one disk, and storage knows both by the same id
            id=snapshot.pk if kind == Kind.VOLUME else uuid4(),
            snapshot=snapshot,
            volume=volume,
            volume_name=volume.name,
            position=position,
            size_gb=volume.size_gb,
        )
    return snapshot


def describe_machine(vm: VirtualMachine, volumes: list[Volume]) -> dict[str, Any]:
    """What a machine was when it was captured; enough to make a new one like it."""
    return {
        "name": vm.name,
        "vcpus": vm.vcpus,
        "memory_mb": vm.memory_mb,
        "hourly_price_micro": vm.hourly_price_micro,
        "volumes": [
            {"uuid": str(volume.pk), "name": volume.name, "size_gb": volume.size_gb, "position": volume.position}
            for volume in volumes
        ],
    }


def request_restore(*, snapshot: Snapshot, user: User, confirmation: str, override: str = "") -> Operation:
    """Ask for the snapshot's bytes back where they came from, after a safety snapshot of what is there now.

    `confirmation` has to be the name of the volume or the machine; `override` is for `is_unchecked`. Raises InvalidState,
    SourceUnavailable, WrongConfirmation, what is_unchecked raises, and what request_snapshot raises for the safety snapshot.
    """
    check_space(snapshot.source)
    with transaction.atomic():
        lock_customer(snapshot.customer_id)
        snapshot = reload_snapshot(snapshot)
        source = reload_source(snapshot.source)
        asking = User.objects.get(pk=user.pk)
        volumes = volumes_in(snapshot)
        for project_id in {snapshot.project_id, source.project_id, *(volume.project_id for volume in volumes)}:
            require_change(asking, project_id)
        check_restorable(snapshot)
        if not is_same_name(confirmation, source.name):
            raise WrongConfirmation(
                _("That is not its name. Type “%(name)s” to confirm that it will be overwritten.")
                % {"name": source.name}
            )
        unchecked = is_unchecked(snapshot, override)
        check_pace(snapshot.customer_id, Operation.Kind.RESTORE)
        check_deliverable(source, safety=True)
        name = free_name(snapshot.customer_id, _("before-restore-of-%(name)s") % {"name": source.name[:40]})
        # of exactly the disks that will be written, whatever is attached to the machine today
        safety = create_snapshot_row(source=source, volumes=volumes, name=name, user=user)
        return create_operation(
            kind=Operation.Kind.RESTORE,
            snapshot=snapshot,
            volume=snapshot.volume,
            vm=snapshot.vm,
            safety_snapshot=safety,
            unchecked=unchecked,
            requested_by=user,
        )


def is_unchecked(snapshot: Snapshot, override: str) -> bool:
    """Whether its bytes are used without being compared first: only where a person typed its name as the `override`.

    Raises WrongOverride, and DamagedSnapshot when it is damaged and nothing was typed.
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


def is_read_first(snapshot: Snapshot, disks: Iterable[DiskImage]) -> bool:
    """Whether using it takes reading all of its disks first, which a person in a hurry may skip."""
    try:
        clones = get_driver(snapshot.location).clones
    except StorageError:
        return False
    oldest = timezone.now() - VERIFICATION_VALID_FOR
    return clones and any(disk.verified_at is None or disk.verified_at < oldest for disk in disks)


def volumes_in(snapshot: Snapshot) -> list[Volume]:
    """The volumes that its disks were captured from, in their order."""
    disks = snapshot.disks.select_related("volume__vm", "volume__location", "volume__project").order_by("position")
    return [disk.volume for disk in disks]


def check_restorable(snapshot: Snapshot) -> None:
    """Raises InvalidState or SourceUnavailable with the reason why this snapshot cannot be restored in place now."""
    require_ready(snapshot)
    if reason := irreversible_reasons([snapshot]).get(snapshot.pk):
        raise InvalidState(reason)
    check_source(snapshot.source)
    disks = list(snapshot.disks.select_related("volume__vm").order_by("position"))
    for disk in disks:
        volume = disk.volume
        if volume.deleted_at is not None:
            raise SourceUnavailable(
                _("The volume “%(name)s” has been deleted. Make new volumes from it instead.") % {"name": volume.name}
            )
        if volume.vm and volume.vm.backend_ref and not get_driver(snapshot.location).reverts_attached:
            raise InvalidState(
                _(
                    "“%(volume)s” is attached to %(vm)s, and the storage of %(location)s restores only what is attached "
                    "to no machine. Detach it there first, or make a new volume from the snapshot instead."
                )
                % {"volume": volume.name, "vm": volume.vm.name, "location": snapshot.location_id}
            )
        if volume.vm and volume.vm.is_running:
            raise InvalidState(
                _(
                    "“%(volume)s” is in use: its virtual machine %(vm)s is running. Stop the machine first, or make a "
                    "new volume from the snapshot instead."
                )
                % {"volume": volume.name, "vm": volume.vm.name}
            )
        if volume.size_gb < disk.size_gb:
            raise InvalidState(
                _("The volume “%(name)s” is smaller than what was captured. Make a new volume from that instead.")
                % {"name": volume.name}
            )
    volumes = [disk.volume for disk in disks]
    if writers(volumes).exists():
        raise InvalidState(_("Something is being restored there right now. Try again when that has ended."))
    if unfinished_captures(volumes).exists():
        raise InvalidState(
            _("A snapshot or backup of “%(name)s” is being taken right now. Restore when that has ended.")
            % {"name": snapshot.source.name}
        )


def irreversible_reasons(snapshots: Iterable[Snapshot]) -> dict[UUID, str]:
    """{id: why} of those that their storage does not write back to where they came from, as long as things are as they
    are. Two queries, or none where every engine writes back everything.
    """
    snapshots = list(snapshots)
    engines = {one.location_id: one.location for one in snapshots}
    limits = {code: get_driver(location).reverts_only_latest for code, location in engines.items()}
    limited = {one.pk: one for one in snapshots if limits[one.location_id]}
    if not limited:
        return {}
    copies = Operation.objects.filter(safety_snapshot=OuterRef("snapshot"))
    disks = list(DiskImage.objects.filter(snapshot__in=limited).annotate(is_copy=Exists(copies)).order_by("pk"))
    # Once per volume: to look for a later one of each snapshot would read all of a volume's snapshots each time. Which is
    # the latest is told by `captured_at`, the storage's own clock, because the storage will compare the same instants.
    latest = dict(
        DiskImage.objects.filter(
            volume__in={disk.volume_id for disk in disks},
            captured_at__isnull=False,
            snapshot__ready_at__isnull=False,
            snapshot__deleted_at=None,
            snapshot__missing_since=None,
            snapshot__protects=None,  # a copy made before a restore is no snapshot in the storage
        )
        .order_by()
        .values_list("volume")
        .annotate(latest=Max("captured_at"))
    )
    reasons = {}
    for disk in disks:
        snapshot = limited[disk.snapshot_id]
        has_later = disk.captured_at is not None and disk.captured_at < latest.get(disk.volume_id, disk.captured_at)
        if disk.is_copy:
            reason = _(
                "This is the copy that was made before a restore, and the storage of %(location)s cannot write it back. "
                "Make a new volume from it instead."
            )
        elif snapshot.vm and snapshot.vm.backend_ref and not get_driver(snapshot.location).reverts_attached:
            reason = _(
                "The storage of %(location)s restores only volumes that are attached to no machine. Make new volumes from "
                "this instead."
            )
        elif has_later:
            reason = _(
                "The storage of %(location)s can restore a volume only to the latest of its snapshots, and this is an "
                "earlier one. Make a new volume from it instead, or delete the later ones first."
            )
        else:
            continue
        reasons[snapshot.pk] = reason % {"location": snapshot.location_id}
    return reasons


def request_new_volume(
    *,
    snapshot: Snapshot,
    user: User,
    project: Project,
    name: str,
    size_gb: int,
    disk: DiskImage | None = None,
    override: str = "",
) -> Operation:
    """Ask for a new volume with the bytes of a disk of the snapshot, in its location.

    Raises InvalidState, RateLimited, QuotaExceeded, OutOfSpace, and what is_unchecked raises for the `override`.

    `disk` may be left out where there is only one.
    """
    check_volume_size(snapshot, size_gb)
    check_space_for_new_volumes(snapshot, [disk] if disk else list(snapshot.disks.all()))
    with transaction.atomic():
        lock_customer(snapshot.customer_id)
        snapshot = reload_snapshot(snapshot)
        check_usable_in(snapshot, project, user)
        unchecked = is_unchecked(snapshot, override)
        disk = disk or only_disk(snapshot)
        if size_gb < disk.size_gb:
            raise InvalidState(
                _("The volume has to have at least %(size)s GB, the size of the captured disk.")
                % {"size": disk.size_gb}
            )
        check_volume_quota(project.pk, [size_gb])
        check_cloud_quota(snapshot.location_id, disk.volume.backend_project, volumes=1, gb=size_gb)
        check_pace(snapshot.customer_id, Operation.Kind.NEW_VOLUME)
        return create_volume_row(
            disk, project=project, name=name.strip(), size_gb=size_gb, user=user, unchecked=unchecked
        )


def check_volume_size(snapshot: Snapshot, size_gb: int) -> None:
    """Whether a volume may have this size, by the provider's limit and the storage's. Not inside a transaction."""
    if size_gb > settings.MAX_VOLUME_GB:
        raise OutOfSpace(
            _("A volume has at most %(size)s GB. Choose a smaller size.") % {"size": f"{settings.MAX_VOLUME_GB:,}"}
        )
    try:
        get_driver(snapshot.location).check_volume_size(size_gb)
    except StorageError as error:
        raise OutOfSpace(str(error)) from error


def check_space_for_new_volumes(snapshot: Snapshot, disks: list[DiskImage]) -> None:
    """Whether the storage has room for the bytes of these disks once more; holes need none. Not inside a transaction."""
    try:
        driver = get_driver(snapshot.location)
        needed = 0 if driver.shares_blocks else sum(disk.allocated_bytes or 0 for disk in disks)
        free = driver.free_bytes()
    except StorageError as error:
        raise OutOfSpace(str(error)) from error
    require_space(snapshot.location_id, needed, free)


def only_disk(snapshot: Snapshot) -> DiskImage:
    disks = list(snapshot.disks.all()[:2])
    if len(disks) != 1:
        raise InvalidState(
            _("“%(name)s” has several disks. Choose the one that the new volume is made from.")
            % {"name": snapshot.name}
            if disks
            else _("The disks of “%(name)s” are unknown, so no volume can be made from it. Ask support.")
            % {"name": snapshot.name}
        )
    return disks[0]


def request_new_machine(
    *, snapshot: Snapshot, user: User, project: Project, name: str, override: str = ""
) -> VirtualMachine:
    """Ask for a stopped machine like the captured one, with a new volume for each of its disks.

    Raises InvalidState, RateLimited, QuotaExceeded, OutOfSpace, and what is_unchecked raises for the `override`.
    """
    check_space_for_new_volumes(snapshot, list(snapshot.disks.all()))
    with transaction.atomic():
        lock_customer(snapshot.customer_id)
        snapshot = reload_snapshot(snapshot)
        check_usable_in(snapshot, project, user)
        unchecked = is_unchecked(snapshot, override)
        disks = list(snapshot.disks.select_related("volume").order_by("position"))
        if not disks:  # fsck tells the operator
            raise InvalidState(_("Nothing is known of its disks, so no machine can be made of it. Ask support."))
        check_pace(snapshot.customer_id, Operation.Kind.NEW_VOLUME, more=len(disks))
        size_gb = sum(disk.size_gb for disk in disks)
        check_volume_quota(project.pk, [disk.size_gb for disk in disks])
        check_cloud_quota(snapshot.location_id, disks[0].volume.backend_project, volumes=len(disks), gb=size_gb)
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
            volume_name = f"{vm.name}-{disk.volume_name}"[:120]
            create_volume_row(
                disk,
                project=project,
                name=volume_name,
                size_gb=disk.size_gb,
                user=user,
                vm=vm,
                unchecked=unchecked,
            )
    return vm


def check_usable_in(snapshot: Snapshot, project: Project, user: User) -> None:
    require_change(User.objects.get(pk=user.pk), project.pk)
    require_ready(snapshot)
    if project.customer_id != snapshot.customer_id:
        raise InvalidState(_("The project belongs to another account. Choose one of the account that it belongs to."))


def create_volume_row(
    disk: DiskImage,
    *,
    project: Project,
    name: str,
    size_gb: int,
    user: User,
    vm: VirtualMachine | None = None,
    unchecked: bool = False,
) -> Operation:
    """The volume that is being made and its operation; the caller holds the lock and has checked."""
    volume = Volume.objects.create(
        project=project,
        location_id=disk.snapshot.location_id,
        vm=vm,
        position=disk.position if vm else 0,
        name=name,
        size_gb=size_gb,
        state=Volume.State.CREATING,
        backend_project=disk.volume.backend_project,
    )
    return create_operation(
        kind=Operation.Kind.NEW_VOLUME,
        snapshot=disk.snapshot,
        disk=disk,
        volume=volume,
        unchecked=unchecked,
        requested_by=user,
    )


def request_verification(*, snapshot: Snapshot, user: User) -> Operation:
    """Ask for the snapshot to be read again and compared. One that is asked for already is returned."""
    with transaction.atomic():
        lock_customer(snapshot.customer_id)
        snapshot = reload_snapshot(snapshot)
        require_change(User.objects.get(pk=user.pk), snapshot.project_id)
        require_ready(snapshot)
        running = Operation.objects.active().filter(snapshot=snapshot, kind=Operation.Kind.VERIFY).first()
        if running:
            return running
        check_pace(snapshot.customer_id, Operation.Kind.VERIFY)
        return create_operation(kind=Operation.Kind.VERIFY, snapshot=snapshot, requested_by=user)


def rename_snapshot(*, snapshot: Snapshot, user: User, name: str) -> Snapshot:
    """Raises NameTaken, InvalidState."""
    with transaction.atomic():
        lock_customer(snapshot.customer_id)
        snapshot = reload_snapshot(snapshot)
        require_change(User.objects.get(pk=user.pk), snapshot.project_id)
        if snapshot.state in (State.DELETING, State.DELETED):
            raise InvalidState(_("It is being deleted and cannot be renamed any more."))
        before, snapshot.name = snapshot.name, check_name(snapshot.customer_id, name, but=snapshot.pk)
        snapshot.name_key = fold_name(snapshot.name)
        snapshot.save(update_fields=["name", "name_key"])
        rename_resource(resource_id=snapshot.pk, name=snapshot.name)
        old, new = {"name": before}, {"name": snapshot.name}
        activity.record(action="snapshot.rename", actor=user, target=snapshot, before=old, after=new)
    return snapshot


def request_deletion(*, snapshot: Snapshot, user: User) -> Snapshot:
    """Accept the deletion: billing ends at this instant, storage follows. Asked again, it changes nothing. Raises
    InvalidState.
    """
    with transaction.atomic():
        lock_customer(snapshot.customer_id)
        snapshot = reload_snapshot(snapshot)
        require_change(User.objects.get(pk=user.pk), snapshot.project_id)
        if snapshot.state in (State.DELETING, State.DELETED):
            return snapshot
        if reason := why_not_deletable(snapshot):
            raise InvalidState(reason)
        accept_deletion(snapshot, at=timezone.now(), cause=DeletionCause.USER, user=user)
    snapshot.refresh_from_db()
    return snapshot


def why_not_deletable(snapshot: Snapshot) -> str:
    """Empty while nothing is in the way of its deletion, and where that has begun."""
    if snapshot.state in (State.PENDING, State.CREATING):
        return _("It is still being taken, so there is nothing to delete yet. Cancel it instead.")
    in_use = uses_of(snapshot).exclude(kind=Operation.Kind.DELETE).first()
    if in_use is None:
        return ""
    return _("It is in use (%(operation)s). Delete it once that has ended.") % {"operation": in_use.get_kind_display()}


def request_deletions(*, snapshots: Iterable[Snapshot], user: User) -> dict[UUID, str]:
    """{id: why not, "" where it was accepted}: each by itself through `request_deletion`, so one refusal stops no other.

    At most DELETED_AT_ONCE, which is for the caller to check. Raises nothing but PermissionDenied.
    """
    results = {}
    for snapshot in snapshots:
        try:
            request_deletion(snapshot=snapshot, user=user)
            results[snapshot.pk] = ""
        except ActionRefused as refusal:
            results[snapshot.pk] = str(refusal)
    return results


def uses_of(snapshot: Snapshot) -> OperationQuerySet:
    """What goes on with it and would miss it."""
    users = Operation.objects.active().filter(Q(snapshot=snapshot) | Q(safety_snapshot=snapshot))
    return users.exclude(kind__in=[Operation.Kind.VERIFY, Operation.Kind.SCRUB, Operation.Kind.CLEAN_UP])


def accept_deletion(snapshot: Snapshot, *, at: datetime, cause: DeletionCause, user: User | None = None) -> None:
    """End the charge and ask storage to delete it. The caller holds the lock and has checked that it is Ready or Failed.

    Raises IntegrityError when anything but a user would delete a pinned backup or the newest verified one of a schedule.
    """
    Snapshot.objects.transition(
        snapshot.pk, [snapshot.state], State.DELETING, delete_requested_at=at, deletion_cause=cause
    )
    stop_charging(snapshot, at)
    create_operation(kind=Operation.Kind.DELETE, snapshot=snapshot, requested_by=user)


def retry(*, operation: Operation, user: User) -> Operation:
    """Ask again for what failed, as a new operation, after the checks that a first request would pass.

    Raises InvalidState when it did not fail or something newer was asked for, and every ActionRefused of the kind.
    """
    snapshot = operation.snapshot
    if operation.kind == Operation.Kind.CAPTURE:
        check_space(snapshot.source)
    with transaction.atomic():
        lock_customer(snapshot.customer_id)
        operation = Operation.objects.select_related("volume__project").get(pk=operation.pk)
        snapshot = reload_snapshot(snapshot)
        require_change(User.objects.get(pk=user.pk), snapshot.project_id)
        newer = Operation.objects.filter(
            snapshot=snapshot, kind=operation.kind, volume=operation.volume, created_at__gt=operation.created_at
        )
        nothing_to_retry = InvalidState(
            _("There is nothing to try again: it did not fail, or it was asked for again already.")
        )
        # This depends on clocks. Below, the state of what would be written decides.
        if operation.state != Operation.State.FAILED or newer.exists():
            raise nothing_to_retry
        if operation.kind == Operation.Kind.RESTORE:
            raise InvalidState(_("Start the restore again from its page: it asks for your confirmation."))
        check_pace(snapshot.customer_id, Operation.Kind(operation.kind))
        if operation.kind == Operation.Kind.CAPTURE:
            stop_clean_up(snapshot)
            reopen_run(snapshot)
            retake(snapshot)
        elif operation.kind == Operation.Kind.NEW_VOLUME:
            require_ready(snapshot)
            if snapshot.is_damaged and not operation.unchecked:
                raise DamagedSnapshot(
                    _("“%(name)s” is damaged. Make a new volume from another snapshot.") % {"name": snapshot.name}
                )
            failed = Volume.objects.filter(pk=operation.volume_id, state=Volume.State.ERROR)
            if not failed.update(state=Volume.State.CREATING, deleted_at=None):
                raise nothing_to_retry
            assert operation.volume is not None  # held by the constraint operation_target
            check_volume_quota(operation.volume.project_id, [])  # it counts already
        elif operation.kind == Operation.Kind.DELETE and snapshot.state != State.DELETING:
            raise nothing_to_retry
        elif operation.kind == Operation.Kind.VERIFY:
            require_ready(snapshot)
        return create_operation(
            kind=operation.kind,
            snapshot=snapshot,
            volume=operation.volume,
            disk_id=operation.disk_id,
            unchecked=operation.unchecked,
            requested_by=user,
        )


def reopen_run(snapshot: Snapshot) -> None:
    """Continue the run of a backup that a user retries. Its backup becomes the newest one, so it gets a new number.

    The caller must hold the customer's lock. Raises InvalidState while another backup of the machine is under way.
    """
    run = BackupRun.objects.select_related("schedule").filter(snapshot=snapshot).first()
    if run is None:
        return
    if BackupRun.objects.unfinished().filter(vm=run.vm_id).exclude(pk=run.pk).exists():
        raise InvalidState(_("Another backup of this machine is under way. Try again when that has ended."))
    BackupRun.objects.filter(pk=run.pk).update(
        number=run.schedule.next_run_number(),
        state=BackupRun.State.TAKING,
        next_try_at=None,
        finished_at=None,
        reason="",
    )


def has_other_disks(snapshot: Snapshot) -> bool:
    """Whether its source has other disks now than when it was asked for."""
    volumes = volumes_of(snapshot.source)
    return {disk.volume_id for disk in snapshot.disks.all()} != {volume.pk for volume in volumes}


def stop_clean_up(snapshot: Snapshot) -> None:
    """What it would remove is taken over by who takes the snapshot again. Raises InvalidState while it is at work."""
    clean_ups = Operation.objects.active().filter(snapshot=snapshot, volume=None, kind=Operation.Kind.CLEAN_UP)
    clean_ups.filter(state=Operation.State.PENDING).delete()
    if clean_ups.exists():
        raise InvalidState(
            _("What the failed attempt left in the storage is being removed. Try again when that is done.")
        )


def retake(snapshot: Snapshot, at: datetime | None = None) -> None:
    """A failed snapshot waits again, for the disks that its source has now. The caller holds the lock."""
    source = reload_source(snapshot.source)
    if snapshot.is_charged:
        check_deliverable(source, at, kind=snapshot.kind)
    else:
        check_capturable(source)
    volumes = volumes_of(source)
    if has_other_disks(snapshot):
        raise InvalidState(_("The machine has other disks now than when this was asked for. Take a new one instead."))
    size_gb = sum(volume.size_gb for volume in volumes)
    if not Snapshot.objects.transition(snapshot.pk, [State.FAILED], State.PENDING, error="", size_gb=size_gb):
        raise InvalidState(_("Its state is not one in which it can be taken again. Take a new one instead."))
    for volume in volumes:
        snapshot.disks.filter(volume=volume).update(size_gb=volume.size_gb)


def reload_snapshot(snapshot: Snapshot) -> Snapshot:
    """The row as it is now that the customer's lock is held."""
    return Snapshot.objects.select_related("project__customer", "location", "volume__location", "vm__location").get(
        pk=snapshot.pk
    )


def require_ready(snapshot: Snapshot) -> None:
    if snapshot.state != State.READY:
        raise InvalidState(
            _("“%(name)s” is not ready (%(state)s), so this cannot be done with it.")
            % {"name": snapshot.name, "state": snapshot.get_state_display()}
        )
    if snapshot.missing_since is not None:
        raise InvalidState(
            _(
                "The snapshot “%(name)s” was deleted in the cloud, outside the portal, so nothing can be done with it. "
                "Delete it here as well."
            )
            % {"name": snapshot.name}
        )
