"""Factories of valid objects, whose traits name situations. `UserFactory(member_of=project)` gives a user a role."""

from datetime import time, timedelta
from typing import Any

import factory
from django.utils import timezone
from factory.django import DjangoModelFactory

from cng_portal.accounts.credentials import hash_secret
from cng_portal.accounts.models import (
    Act,
    ApplicationCredential,
    Approval,
    BillingType,
    Customer,
    Invitation,
    Membership,
    Project,
    Role,
    User,
)
from cng_portal.common.names import fold_name
from cng_portal.inventory.models import Location, Region, VirtualMachine, Volume
from cng_portal.mail.models import OutgoingMail
from cng_portal.notifications.models import Notification
from snapshots.backups.occurrences import Recurrence, next_occurrence
from snapshots.models import (
    BackupRun,
    BackupSchedule,
    DeletionCause,
    DiskChange,
    DiskImage,
    Draft,
    Kind,
    LockMode,
    Operation,
    Snapshot,
    SnapshotLock,
    State,
)

CREDENTIAL_SECRET = "1cng_" + 24 * "5e"


class CustomerFactory(DjangoModelFactory):
    class Meta:
        model = Customer

    class Params:
        postpaid = factory.Trait(billing_type=BillingType.POSTPAID)

    number = factory.Sequence(lambda n: 1001 + n)
    name = factory.Sequence(lambda n: f"Customer {n}")


class ProjectFactory(DjangoModelFactory):
    class Meta:
        model = Project

    customer = factory.SubFactory(CustomerFactory)
    name = factory.Sequence(lambda n: f"Project {n}")


class UserFactory(DjangoModelFactory):
    """`member_of=project` makes the user an owner there, or what `member_of__role` says, and sets their customer."""

    class Meta:
        model = User
        skip_postgeneration_save = True

    class Params:
        admin = factory.Trait(is_staff=True, is_superuser=True)

    email = factory.Sequence(lambda n: f"person{n}@example.com")
    password = factory.django.Password(None)

    @factory.post_generation
    def member_of(self: Any, create: bool, project: Project | None, role: str = Role.OWNER) -> None:
        if project:
            MembershipFactory(user=self, project=project, role=role)
            if self.customer is None:
                self.customer = project.customer
                self.save(update_fields=["customer"])


class MembershipFactory(DjangoModelFactory):
    class Meta:
        model = Membership

    project = factory.SubFactory(ProjectFactory)
    user = factory.SubFactory(UserFactory)
    role = Role.OWNER


class ApplicationCredentialFactory(DjangoModelFactory):
    """A member's, with every permission. Its secret is CREDENTIAL_SECRET."""

    class Meta:
        model = ApplicationCredential

    project = factory.SubFactory(ProjectFactory)
    user = factory.LazyAttribute(lambda credential: UserFactory(member_of=credential.project))
    name = factory.Sequence(lambda n: f"script-{n}")
    secret_hash = hash_secret(CREDENTIAL_SECRET)
    role = Role.MEMBER
    acts = factory.LazyFunction(lambda: list(Act.values))


class ApprovalFactory(DjangoModelFactory):
    """An open request of another owner of the project to turn the approvals off."""

    class Meta:
        model = Approval

    project = factory.SubFactory(ProjectFactory)
    customer = factory.SelfAttribute("project.customer")
    action = "turn_off"
    target_id = factory.SelfAttribute("customer.pk")
    target_name = factory.SelfAttribute("customer.name")
    requested_by = factory.LazyAttribute(lambda approval: UserFactory(member_of=approval.project))
    requested_at = factory.LazyFunction(timezone.now)
    expires_at = factory.LazyAttribute(lambda approval: approval.requested_at + timedelta(hours=72))


class InvitationFactory(DjangoModelFactory):
    """Sent by an owner of the project, and still open."""

    class Meta:
        model = Invitation

    class Params:
        expired = factory.Trait(expires_at=factory.LazyFunction(lambda: timezone.now() - timedelta(minutes=1)))

    project = factory.SubFactory(ProjectFactory)
    email = factory.Sequence(lambda n: f"guest{n}@example.com")
    role = Role.MEMBER
    invited_by = factory.LazyAttribute(lambda invitation: UserFactory(member_of=invitation.project))
    expires_at = factory.LazyFunction(lambda: timezone.now() + timedelta(days=7))


class OutgoingMailFactory(DjangoModelFactory):
    """Queued just now."""

    class Meta:
        model = OutgoingMail

    kind = OutgoingMail.Kind.NOTIFICATION
    recipient = factory.Sequence(lambda n: f"reader{n}@example.com")
    subject = "1CNG: A backup was missed"
    body = "The storage was full."
    expires_at = factory.LazyFunction(lambda: timezone.now() + timedelta(days=2))


class NotificationFactory(DjangoModelFactory):
    class Meta:
        model = Notification

    class Params:
        read = factory.Trait(read_at=factory.LazyFunction(timezone.now))

    user = factory.SubFactory(UserFactory)
    key = factory.Sequence(lambda n: f"event-{n}")
    level = Notification.Level.DANGER
    title = "The snapshot “db-01” could not be taken"
    text = "The storage does not answer. Nothing was created. Try again later."


class LocationFactory(DjangoModelFactory):
    class Meta:
        model = Location
        django_get_or_create = ["code"]

    class Params:
        closed = factory.Trait(active=False)

    code = factory.Sequence(lambda n: f"1CNG-YGN-AZ{n + 1:02d}")
    city = "Yangon"
    country = "MM"
    region = Region.ASIA


class VirtualMachineFactory(DjangoModelFactory):
    class Meta:
        model = VirtualMachine

    class Params:
        stopped = factory.Trait(state=VirtualMachine.State.STOPPED)

    project = factory.SubFactory(ProjectFactory)
    location = factory.SubFactory(LocationFactory)
    name = factory.Sequence(lambda n: f"vm-{n}")


class VolumeFactory(DjangoModelFactory):
    class Meta:
        model = Volume

    class Params:
        attached = factory.Trait(
            vm=factory.SubFactory(
                VirtualMachineFactory,
                project=factory.SelfAttribute("..project"),
                location=factory.SelfAttribute("..location"),
            )
        )
        # attached to a stopped machine, so that it can be restored
        attached_stopped = factory.Trait(
            vm=factory.SubFactory(
                VirtualMachineFactory,
                project=factory.SelfAttribute("..project"),
                location=factory.SelfAttribute("..location"),
                stopped=True,
            )
        )
        gone = factory.Trait(deleted_at=factory.LazyFunction(timezone.now))
        # in the recycle bin for another week
        binned = factory.Trait(
            state=Volume.State.DELETING,
            delete_requested_at=factory.LazyFunction(timezone.now),
            deleted_at=factory.SelfAttribute("delete_requested_at"),
            bin_until=factory.LazyFunction(lambda: timezone.now() + timedelta(days=7)),
        )

    project = factory.SubFactory(ProjectFactory)
    location = factory.SubFactory(LocationFactory)
    name = factory.Sequence(lambda n: f"volume-{n}")
    size_gb = 1


class DiskImageFactory(DjangoModelFactory):
    class Meta:
        model = DiskImage

    id = factory.SelfAttribute("snapshot.id")
    volume = factory.SelfAttribute("snapshot.volume")
    volume_name = factory.SelfAttribute("snapshot.volume.name")
    size_gb = factory.SelfAttribute("snapshot.size_gb")
    captured_at = factory.SelfAttribute("snapshot.ready_at")


class SnapshotFactory(DjangoModelFactory):
    """A ready snapshot of a volume, with its disk image. Project and customer are the volume's."""

    class Meta:
        model = Snapshot
        skip_postgeneration_save = True

    class Params:
        pending = factory.Trait(state=State.PENDING, ready_at=None)
        creating = factory.Trait(state=State.CREATING, ready_at=None)
        failed = factory.Trait(
            state=State.FAILED, ready_at=None, error="The storage ran out of room. Ask your provider, then try again."
        )
        damaged = factory.Trait(
            damaged_at=factory.LazyFunction(timezone.now), disk__damage="Block 12 is not what was captured."
        )
        deleting = factory.Trait(
            state=State.DELETING,
            delete_requested_at=factory.LazyFunction(timezone.now),
            deletion_cause=DeletionCause.USER,
        )
        deleted = factory.Trait(
            state=State.DELETED,
            delete_requested_at=factory.LazyFunction(timezone.now),
            deletion_cause=DeletionCause.USER,
            deleted_at=factory.LazyFunction(timezone.now),
        )
        # in the recycle bin for another week
        binned = factory.Trait(
            state=State.DELETED,
            delete_requested_at=factory.LazyFunction(timezone.now),
            deletion_cause=DeletionCause.USER,
            deleted_at=factory.SelfAttribute("delete_requested_at"),
            bin_until=factory.LazyFunction(lambda: timezone.now() + timedelta(days=7)),
        )

    kind = Kind.VOLUME
    volume = factory.SubFactory(VolumeFactory)
    project = factory.SelfAttribute("volume.project")
    customer = factory.SelfAttribute("project.customer")
    location = factory.SelfAttribute("volume.location")
    name = factory.Sequence(lambda n: f"snapshot-{n}")
    name_key = factory.LazyAttribute(lambda snapshot: fold_name(snapshot.name))
    size_gb = factory.SelfAttribute("volume.size_gb")
    state = State.READY
    ready_at = factory.LazyFunction(timezone.now)
    disk = factory.RelatedFactory(DiskImageFactory, factory_related_name="snapshot")


class SnapshotLockFactory(DjangoModelFactory):
    """A Governance lock that holds for another month."""

    class Meta:
        model = SnapshotLock

    class Params:
        compliance = factory.Trait(
            mode=LockMode.COMPLIANCE, final_at=factory.LazyFunction(lambda: timezone.now() + timedelta(days=1))
        )
        final = factory.Trait(
            mode=LockMode.COMPLIANCE, final_at=factory.LazyFunction(lambda: timezone.now() - timedelta(days=1))
        )
        ended = factory.Trait(until=factory.LazyFunction(lambda: timezone.now() - timedelta(days=800)))

    snapshot = factory.SubFactory(SnapshotFactory)
    mode = LockMode.GOVERNANCE
    until = factory.LazyFunction(lambda: timezone.now() + timedelta(days=30))


class DiskChangeFactory(DjangoModelFactory):
    """A usual change: ten of a thousand files."""

    class Meta:
        model = DiskChange

    disk = factory.SubFactory(DiskImageFactory)
    previous = factory.SelfAttribute("disk")
    files_before = 1000
    added = removed = renamed = sampled = unreadable = 0
    changed = 10


class VMSnapshotFactory(DjangoModelFactory):
    """A ready snapshot of a virtual machine, without disk images."""

    class Meta:
        model = Snapshot

    kind = Kind.VM
    vm = factory.SubFactory(VirtualMachineFactory)
    project = factory.SelfAttribute("vm.project")
    customer = factory.SelfAttribute("project.customer")
    location = factory.SelfAttribute("vm.location")
    name = factory.Sequence(lambda n: f"vm-snapshot-{n}")
    name_key = factory.LazyAttribute(lambda snapshot: fold_name(snapshot.name))
    size_gb = 1
    state = State.READY
    ready_at = factory.LazyFunction(timezone.now)


class BackupScheduleFactory(DjangoModelFactory):
    """A schedule of a machine, or with `of_volume` of a volume: daily at 2 a.m., keeps two."""

    class Meta:
        model = BackupSchedule

    class Params:
        automatic = factory.Trait(origin=BackupSchedule.Origin.AUTOMATIC)
        weekly = factory.Trait(interval="weekly", weekday=0)
        monthly = factory.Trait(interval="monthly", month_day=31)
        paused = factory.Trait(paused_at=factory.LazyFunction(timezone.now), next_run_at=None)
        deleted = factory.Trait(deleted_at=factory.LazyFunction(timezone.now), next_run_at=None)
        of_volume = factory.Trait(vm=None, volume=factory.SubFactory(VolumeFactory))

    vm = factory.SubFactory(VirtualMachineFactory)
    project = factory.LazyAttribute(lambda schedule: (schedule.vm or schedule.volume).project)
    interval = "daily"
    at = time(2)
    time_zone = factory.SelfAttribute("project.customer.time_zone")
    next_run_at = factory.LazyAttribute(
        lambda schedule: next_occurrence(
            Recurrence(
                interval=schedule.interval,
                at=schedule.at,
                weekday=getattr(schedule, "weekday", None),
                month_day=getattr(schedule, "month_day", None),
            ),
            schedule.project.customer.zone,
            timezone.now(),
        )
    )


class BackupFactory(VMSnapshotFactory):
    """A ready backup of a machine, without run, disks and schedule."""

    kind = Kind.BACKUP
    name = factory.Sequence(lambda n: f"vm-backup-{n}")


class BackupRunFactory(DjangoModelFactory):
    """A run that was done an hour ago, with its backup."""

    class Meta:
        model = BackupRun

    class Params:
        taking = factory.Trait(state=BackupRun.State.TAKING, finished_at=None)
        waiting = factory.Trait(
            state=BackupRun.State.WAITING,
            finished_at=None,
            tries=1,
            next_try_at=factory.LazyFunction(lambda: timezone.now() + timedelta(minutes=5)),
            reason="The storage ran out of room. Ask your provider, then try again.",
            snapshot=None,
        )
        failed = factory.Trait(
            state=BackupRun.State.FAILED,
            tries=4,
            reason="The storage ran out of room. Ask your provider, then try again.",
            snapshot=None,
        )
        missed = factory.Trait(
            state=BackupRun.State.MISSED, reason="The portal could not start it at its time.", snapshot=None
        )

    schedule = factory.SubFactory(BackupScheduleFactory)
    vm = factory.SelfAttribute("schedule.vm")
    volume = factory.SelfAttribute("schedule.volume")
    number = factory.LazyAttribute(lambda run: run.schedule.next_run_number())
    scheduled_at = factory.Sequence(lambda n: timezone.now() - timedelta(hours=1, seconds=n))
    state = BackupRun.State.DONE
    snapshot = factory.SubFactory(BackupFactory, vm=factory.SelfAttribute("..vm"))
    tries = 1
    finished_at = factory.LazyFunction(timezone.now)


class OperationFactory(DjangoModelFactory):
    """A pending verification of a snapshot."""

    class Meta:
        model = Operation

    class Params:
        running = factory.Trait(
            state=Operation.State.RUNNING,
            attempt=1,
            started_at=factory.LazyFunction(timezone.now),
            lease_until=factory.LazyFunction(lambda: timezone.now() + timedelta(minutes=1)),
        )
        succeeded = factory.Trait(
            state=Operation.State.SUCCEEDED,
            attempt=1,
            started_at=factory.LazyFunction(timezone.now),
            finished_at=factory.LazyFunction(timezone.now),
        )
        failed = factory.Trait(
            state=Operation.State.FAILED,
            attempt=3,
            error="The storage ran out of room. Ask your provider, then try again.",
            started_at=factory.LazyFunction(timezone.now),
            finished_at=factory.LazyFunction(timezone.now),
        )
        capture = factory.Trait(kind=Operation.Kind.CAPTURE)
        # into the snapshot's own volume, with a safety snapshot
        restore = factory.Trait(
            kind=Operation.Kind.RESTORE,
            volume=factory.SelfAttribute("snapshot.volume"),
            safety_snapshot=factory.SubFactory(SnapshotFactory, volume=factory.SelfAttribute("..snapshot.volume")),
        )

        new_volume = factory.Trait(
            kind=Operation.Kind.NEW_VOLUME,
            disk=factory.LazyAttribute(lambda operation: operation.snapshot.disks.first()),
            volume=factory.SubFactory(
                VolumeFactory,
                project=factory.SelfAttribute("..snapshot.project"),
                location=factory.SelfAttribute("..snapshot.location"),
                state=Volume.State.CREATING,
            ),
        )

    kind = Operation.Kind.VERIFY
    snapshot = factory.SubFactory(SnapshotFactory)


class DraftFactory(DjangoModelFactory):
    """A draft without answers."""

    class Meta:
        model = Draft

    customer = factory.SubFactory(CustomerFactory)
    created_by = factory.SubFactory(UserFactory)
