"""The one door for everything that a person asks of snapshots: view, command and admin come through here.

Each function validates, writes in one transaction that holds the customer's lock, and returns the object; or raises a
`Refusal`, whose text is for the person, with nothing written.
"""

import unicodedata
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from django.core.exceptions import PermissionDenied
from django.db import transaction
from django.db.models import Count, Q, Sum
from django.utils import timezone
from django.utils.translation import gettext as _
from django.utils.translation import ngettext

from billing import services as billing
from billing.money import format_price
from cng_portal.accounts.models import UNLIMITED, Customer, Project, User
from cng_portal.accounts.services import lock_customer
from cng_portal.inventory.models import VirtualMachine, Volume

from .drivers import get_driver
from .drivers.base import GIB, StorageError
from .models import NAME_LENGTH, DiskImage, Draft, Kind, Operation, Snapshot, State, name_key
from .operations import create_operation
from .tasks import volume_ref

# control characters, lone surrogates, line and paragraph separators; joiners stay, scripts need them
UNSHOWABLE = {"Cc", "Cs", "Zl", "Zp"}


class Refusal(Exception):
    """Why it was not done: what happened, what it means, what to do."""


class NotFree(Refusal):
    """The name is taken, missing or too long; `suggestion` is a free one."""

    def __init__(self, message: str, suggestion: str) -> None:
        super().__init__(message)
        self.suggestion = suggestion


class QuotaFull(Refusal):
    pass


class NoRoom(Refusal):
    """The location's storage is too full for the capture, or cannot be asked."""


class NotSold(Refusal):
    pass


class NoCredit(Refusal):
    pass


class SourceGone(Refusal):
    """The volume, project or location is not there any more, or cannot be used now."""


class PriceMoved(Refusal):
    """The price is not the one that was shown; `quote` is today's."""

    def __init__(self, message: str, quote: billing.Quote) -> None:
        super().__init__(message)
        self.quote = quote


class WrongConfirmation(Refusal):
    pass


class NotNow(Refusal):
    """Its state does not allow it."""


# --- questions -------------------------------------------------------------------------------------------------------


def require_change(user: User, project_id: UUID) -> None:
    """403 with an explanation for who sees the project but may not change it; who does not see it was given a 404
    before.
    """
    if not user.can_change(project_id):
        raise PermissionDenied(
            _("You can see this project, but your role “Viewer” does not allow changes. Ask an owner of the project.")
        )


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
    """The limits that apply to a new snapshot in this project: the customer's two and the project's two. One query."""
    in_project = Q(project=project)
    used = (
        Snapshot.objects.filter(customer_id=project.customer_id, deleted_at=None)
        .counted()
        .aggregate(
            count=Count("pk"),
            gb=Sum("size_gb", default=0),
            project_count=Count("pk", filter=in_project),
            project_gb=Sum("size_gb", filter=in_project, default=0),
        )
    )
    customer = project.customer
    return [
        QuotaUse(_("snapshots of your account"), used["count"], customer.snapshot_quota),
        QuotaUse(_("GB of snapshots of your account"), used["gb"], customer.snapshot_gb_quota),
        QuotaUse(_("snapshots of the project"), used["project_count"], project.snapshot_quota),
        QuotaUse(_("GB of snapshots of the project"), used["project_gb"], project.snapshot_gb_quota),
    ]


def check_quota(project: Project, size_gb: int) -> None:
    for use, more in zip(quota_use(project), (1, size_gb, 1, size_gb), strict=True):
        if not use.admits(more):
            raise QuotaFull(
                _(
                    "Quota full: %(used)s of %(limit)s %(what)s are used and this one needs %(more)s. "
                    "Delete snapshots that you no longer need, or ask support for a higher quota."
                )
                % {"used": use.used, "limit": use.limit, "what": use.label, "more": more}
            )


def reserved_micro(customer: Customer, at: datetime) -> int:
    """The first hour of what is asked for and not Ready yet: it has no usage segment, but the credits are spoken
    for.
    """
    waiting = (
        Snapshot.objects.filter(customer=customer, deleted_at=None, state__in=[State.PENDING, State.CREATING])
        .values("kind", "location_id")
        .annotate(gb=Sum("size_gb"))
        .order_by()
    )
    total = 0
    rates: dict[str, dict[str, int]] = {}
    for row in waiting:
        service_kind = Snapshot(kind=row["kind"]).service_kind
        if service_kind not in rates:
            rates[service_kind] = billing.rates_at(kind=service_kind, at=at)
        total += row["gb"] * rates[service_kind].get(row["location_id"], 0)
    return total


def quote_for(source: Volume, *, kind: Kind = Kind.VOLUME, at: datetime | None = None) -> billing.Quote:
    """Today's price of a snapshot of this volume. Raises NotSold."""
    try:
        return billing.quote(
            customer=source.project.customer,
            location=source.location,
            kind=Snapshot(kind=kind).service_kind,
            size_gb=source.size_gb,
            at=at or timezone.now(),
        )
    except billing.NotSold as error:
        raise NotSold(str(error)) from error


def check_cover(customer: Customer, hourly_micro: int, at: datetime) -> None:
    try:
        billing.require_cover(
            customer=customer, hourly_micro=hourly_micro, at=at, reserved_micro=reserved_micro(customer, at)
        )
    except billing.InsufficientCredit as error:
        raise NoCredit(str(error)) from error


def check_room(volume: Volume) -> None:
    """Ask the storage whether a capture fits. Not inside a transaction: it may be a call over the network."""
    try:
        driver = get_driver(volume.location)
        needed, free = driver.bytes_needed([volume_ref(volume)]), driver.free_bytes()
    except StorageError as error:
        raise NoRoom(str(error)) from error
    if free is not None and needed > free:
        raise NoRoom(
            _(
                "The storage of %(location)s is too full: this snapshot may need %(needed).1f GB and %(free).1f GB are "
                "free. Nothing was created. Ask support, or delete snapshots that you no longer need."
            )
            % {"location": volume.location_id, "needed": needed / GIB, "free": free / GIB}
        )


def check_source(volume: Volume) -> None:
    if volume.deleted_at is not None:
        raise SourceGone(_("The volume “%(name)s” has been deleted. Choose another one.") % {"name": volume.name})
    if volume.state != Volume.State.AVAILABLE:
        raise SourceGone(
            _("The volume “%(name)s” is not usable yet. Wait until it is available, or choose another one.")
            % {"name": volume.name}
        )
    if not volume.location.active:
        raise SourceGone(
            _("The location %(code)s is closed for new snapshots. Choose a volume elsewhere, or ask support.")
            % {"code": volume.location_id}
        )
    if Operation.objects.active().filter(volume=volume).exists():
        raise SourceGone(
            _("The volume “%(name)s” is being restored right now. Try again when that has ended.")
            % {"name": volume.name}
        )


def free_name(customer_id: UUID, wanted: str) -> str:
    """`wanted` if no snapshot of the customer has it, else with the lowest number that makes it free. One query."""
    wanted = wanted.strip()[:NAME_LENGTH] or _("snapshot")
    stem = wanted[: NAME_LENGTH - 6]
    taken = set(
        Snapshot.objects.filter(
            customer_id=customer_id, deleted_at=None, name_key__startswith=name_key(stem)
        ).values_list("name_key", flat=True)
    )
    candidate, number = wanted, 1
    while name_key(candidate) in taken:
        number += 1
        candidate = f"{stem}-{number}"
    return candidate


def suggest_name(volume: Volume, *, at: datetime | None = None) -> str:
    """`web-01-root-2026-11-22`, in the reader's zone, made free."""
    day = timezone.localtime(at or timezone.now()).date().isoformat()
    return free_name(volume.project.customer_id, f"{volume.name[: NAME_LENGTH - 17]}-{day}")


def check_name(customer_id: UUID, name: str, *, but: UUID | None = None) -> str:
    """The name trimmed, if the customer can have it: 1 to 64 characters, unique without regard to case. Raises
    NotFree.
    """
    name = name.strip()
    if not name:
        raise NotFree(_("Give the snapshot a name, so that you find it again."), "")
    if len(name) > NAME_LENGTH:
        raise NotFree(
            ngettext(
                "The name has %(length)s character; at most %(most)s fit. Shorten it.",
                "The name has %(length)s characters; at most %(most)s fit. Shorten it.",
                len(name),
            )
            % {"length": len(name), "most": NAME_LENGTH},
            "",
        )
    if any(unicodedata.category(character) in UNSHOWABLE for character in name):
        raise NotFree(_("The name has a character that cannot be shown, such as a line break. Remove it."), "")
    same = Snapshot.objects.filter(customer_id=customer_id, deleted_at=None, name_key=name_key(name)).exclude(pk=but)
    if same.exists():
        suggestion = free_name(customer_id, name)
        raise NotFree(
            _("Another snapshot has the name “%(name)s”. Names are unique; “%(free)s” is free.")
            % {"name": name, "free": suggestion},
            suggestion,
        )
    return name


def check_deliverable(volume: Volume, at: datetime | None = None) -> billing.Quote:
    """Everything that can be known about a snapshot of this volume before its name: raises the first Refusal."""
    at = at or timezone.now()
    check_source(volume)
    check_quota(volume.project, volume.size_gb)
    quote = quote_for(volume, at=at)
    check_cover(volume.project.customer, quote.hourly_micro, at)
    return quote


# --- acts ------------------------------------------------------------------------------------------------------------


def request_snapshot(
    *,
    volume: Volume,
    name: str,
    user: User,
    shown_hourly_micro: int | None = None,
    draft: Draft | None = None,
) -> Snapshot:
    """Ask for a snapshot of a volume. The same draft again gives the snapshot that it made the first time.

    `shown_hourly_micro` is the price that the person saw; another price today raises PriceMoved. Raises every Refusal.
    """
    check_room(volume)
    with transaction.atomic():
        lock_customer(volume.project.customer_id)
        if draft and (made := Snapshot.objects.filter(draft=draft).first()):
            return made
        volume = Volume.objects.select_related("project__customer", "location").get(pk=volume.pk)
        require_change(User.objects.get(pk=user.pk), volume.project_id)
        quote = check_deliverable(volume)
        name = check_name(volume.project.customer_id, name)
        if shown_hourly_micro is not None and shown_hourly_micro != quote.hourly_micro:
            raise PriceMoved(
                _("The price has changed to %(price)s an hour since it was shown. Check it and confirm again.")
                % {"price": format_price(quote.hourly_micro, quote.currency)},
                quote,
            )
        snapshot = create_snapshot_row(volume=volume, name=name, user=user, draft=draft)
        create_operation(kind=Operation.Kind.CAPTURE, snapshot=snapshot, requested_by=user)
    return snapshot


def create_snapshot_row(*, volume: Volume, name: str, user: User | None, draft: Draft | None = None) -> Snapshot:
    """The pending row and its disk; the caller holds the lock, has checked, and makes the operation."""
    snapshot = Snapshot.objects.create(
        kind=Kind.VOLUME,
        customer_id=volume.project.customer_id,
        project=volume.project,
        location=volume.location,
        volume=volume,
        name=name,
        name_key=name_key(name),
        size_gb=volume.size_gb,
        requested_by=user,
        draft=draft,
    )
    DiskImage.objects.create(
        id=snapshot.pk, snapshot=snapshot, volume=volume, volume_name=volume.name, size_gb=volume.size_gb
    )
    return snapshot


def request_restore(*, snapshot: Snapshot, user: User, confirmation: str) -> Operation:
    """Ask for the snapshot's bytes back in its volume, after a safety snapshot of what is there now.

    `confirmation` has to be the volume's name. Raises NotNow, SourceGone, WrongConfirmation, and what request_snapshot
    raises for the safety snapshot.
    """
    volume = snapshot.volume
    assert volume is not None
    check_room(volume)
    with transaction.atomic():
        lock_customer(snapshot.customer_id)
        snapshot = locked(snapshot)
        volume = Volume.objects.select_related("project__customer", "location", "vm").get(pk=volume.pk)
        require_change(User.objects.get(pk=user.pk), snapshot.project_id)
        require_change(User.objects.get(pk=user.pk), volume.project_id)
        check_restorable(snapshot, volume)
        if confirmation.strip() != volume.name:
            raise WrongConfirmation(
                _("That is not the volume's name. Type “%(name)s” to confirm that it will be overwritten.")
                % {"name": volume.name}
            )
        check_deliverable(volume)
        name = free_name(snapshot.customer_id, _("before-restore-of-%(name)s") % {"name": volume.name[:40]})
        safety = create_snapshot_row(volume=volume, name=name, user=user)
        return create_operation(
            kind=Operation.Kind.RESTORE,
            snapshot=snapshot,
            volume=volume,
            safety_snapshot=safety,
            requested_by=user,
        )


def check_restorable(snapshot: Snapshot, volume: Volume) -> None:
    """Raises NotNow or SourceGone with the reason why this snapshot cannot be restored into this volume now."""
    require_ready(snapshot)
    check_source(volume)
    if volume.vm and volume.vm.state == VirtualMachine.State.RUNNING:
        raise NotNow(
            _(
                "“%(volume)s” is in use: its virtual machine %(vm)s is running. Stop the machine first, or make a new "
                "volume from the snapshot instead."
            )
            % {"volume": volume.name, "vm": volume.vm.name}
        )
    if volume.size_gb < snapshot.size_gb:
        raise NotNow(_("The volume is smaller than the snapshot. Make a new volume from the snapshot instead."))
    if Snapshot.objects.filter(volume=volume, state__in=[State.PENDING, State.CREATING]).exists():
        raise NotNow(
            _("A snapshot of “%(volume)s” is being taken right now. Restore when that has ended.")
            % {"volume": volume.name}
        )


def request_new_volume(*, snapshot: Snapshot, user: User, project: Project, name: str, size_gb: int) -> Operation:
    """Ask for a new volume with the snapshot's bytes, in the snapshot's location. Raises NotNow."""
    with transaction.atomic():
        lock_customer(snapshot.customer_id)
        snapshot = locked(snapshot)
        require_change(User.objects.get(pk=user.pk), project.pk)
        require_ready(snapshot)
        if project.customer_id != snapshot.customer_id:
            raise NotNow(_("The project belongs to another account. Choose one of the account that owns the snapshot."))
        if size_gb < snapshot.size_gb:
            raise NotNow(
                _("The volume has to have at least %(size)s GB, the size of the snapshot.") % {"size": snapshot.size_gb}
            )
        volume = Volume.objects.create(
            project=project,
            location_id=snapshot.location_id,
            name=name.strip(),
            size_gb=size_gb,
            state=Volume.State.CREATING,
        )
        return create_operation(kind=Operation.Kind.NEW_VOLUME, snapshot=snapshot, volume=volume, requested_by=user)


def request_verification(*, snapshot: Snapshot, user: User) -> Operation:
    """Ask for the snapshot to be read again and compared. One that is asked for already is returned."""
    with transaction.atomic():
        lock_customer(snapshot.customer_id)
        snapshot = locked(snapshot)
        require_change(User.objects.get(pk=user.pk), snapshot.project_id)
        require_ready(snapshot)
        running = Operation.objects.active().filter(snapshot=snapshot, kind=Operation.Kind.VERIFY).first()
        return running or create_operation(kind=Operation.Kind.VERIFY, snapshot=snapshot, requested_by=user)


def rename_snapshot(*, snapshot: Snapshot, user: User, name: str) -> Snapshot:
    """Raises NotFree, NotNow."""
    with transaction.atomic():
        lock_customer(snapshot.customer_id)
        snapshot = locked(snapshot)
        require_change(User.objects.get(pk=user.pk), snapshot.project_id)
        if snapshot.state in (State.DELETING, State.DELETED):
            raise NotNow(_("The snapshot is being deleted and cannot be renamed any more."))
        snapshot.name = check_name(snapshot.customer_id, name, but=snapshot.pk)
        snapshot.name_key = name_key(snapshot.name)
        snapshot.save(update_fields=["name", "name_key"])
        billing.rename_resource(resource_id=snapshot.pk, name=snapshot.name)
    return snapshot


def request_deletion(*, snapshot: Snapshot, user: User) -> Snapshot:
    """Accept the deletion: billing ends at this instant, storage follows. Asked again, it changes nothing. Raises
    NotNow.
    """
    with transaction.atomic():
        lock_customer(snapshot.customer_id)
        snapshot = locked(snapshot)
        require_change(User.objects.get(pk=user.pk), snapshot.project_id)
        if snapshot.state in (State.DELETING, State.DELETED):
            return snapshot
        if snapshot.state not in (State.READY, State.FAILED):
            raise NotNow(_("The snapshot is still being taken. Delete it once that has ended."))
        users = Operation.objects.active().filter(snapshot=snapshot).exclude(kind=Operation.Kind.VERIFY)
        if in_use := users.first():
            raise NotNow(
                _("The snapshot is in use (%(operation)s). Delete it once that has ended.")
                % {"operation": in_use.get_kind_display()}
            )
        now = timezone.now()
        Snapshot.objects.transition(snapshot.pk, [snapshot.state], State.DELETING, delete_requested_at=now)
        billing.close_segment(resource_id=snapshot.pk, kind=snapshot.service_kind, at=now)
        create_operation(kind=Operation.Kind.DELETE, snapshot=snapshot, requested_by=user)
    snapshot.refresh_from_db()
    return snapshot


def retry(*, operation: Operation, user: User) -> Operation:
    """Ask again for what failed, as a new operation, after the checks that a first request would pass.

    Raises NotNow when it did not fail or something newer was asked for, and every Refusal of the kind.
    """
    snapshot = operation.snapshot
    if operation.kind == Operation.Kind.CAPTURE and snapshot.volume:
        check_room(snapshot.volume)
    with transaction.atomic():
        lock_customer(snapshot.customer_id)
        operation = Operation.objects.select_related("volume__project").get(pk=operation.pk)
        snapshot = locked(snapshot)
        require_change(User.objects.get(pk=user.pk), snapshot.project_id)
        newer = Operation.objects.filter(
            snapshot=snapshot, kind=operation.kind, volume=operation.volume, created_at__gt=operation.created_at
        )
        if operation.state != Operation.State.FAILED or newer.exists():
            raise NotNow(_("There is nothing to try again: it did not fail, or it was asked for again already."))
        if operation.kind == Operation.Kind.RESTORE:
            raise NotNow(_("Start the restore again from the snapshot's page: it asks for your confirmation."))
        if operation.kind == Operation.Kind.CAPTURE:
            volume = Volume.objects.select_related("project__customer", "location").get(pk=snapshot.volume_id)
            check_deliverable(volume)
            if not Snapshot.objects.transition(
                snapshot.pk, [State.FAILED], State.PENDING, error="", size_gb=volume.size_gb
            ):
                raise NotNow(_("The snapshot is not in a state in which it can be taken again."))
            snapshot.disks.update(size_gb=volume.size_gb)
        elif operation.kind == Operation.Kind.NEW_VOLUME:
            require_ready(snapshot)
            Volume.objects.filter(pk=operation.volume_id).update(state=Volume.State.CREATING, deleted_at=None)
        elif operation.kind == Operation.Kind.VERIFY:
            require_ready(snapshot)
        return create_operation(kind=operation.kind, snapshot=snapshot, volume=operation.volume, requested_by=user)


def locked(snapshot: Snapshot) -> Snapshot:
    """The row as it is now that the customer's lock is held."""
    return Snapshot.objects.select_related("project__customer", "location").get(pk=snapshot.pk)


def require_ready(snapshot: Snapshot) -> None:
    if snapshot.state != State.READY:
        raise NotNow(
            _("The snapshot “%(name)s” is not ready (%(state)s), so this cannot be done with it.")
            % {"name": snapshot.name, "state": snapshot.get_state_display()}
        )
