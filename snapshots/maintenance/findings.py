"""What `manage.py fsck` can find, with an explanation for the operator."""

from collections.abc import Callable
from dataclasses import dataclass

from django.utils.functional import Promise
from django.utils.translation import gettext_lazy as _


@dataclass(frozen=True)
class Finding:
    """`repair` fixes it and returns whether it could; None where more than one outcome could be right."""

    code: str
    location: str
    subject: str
    detail: str = ""
    repair: Callable[[], bool] | None = None


@dataclass(frozen=True)
class Explanation:
    title: str | Promise
    meaning: str | Promise
    remedy: str | Promise
    repair: str | Promise = _("--repair doesn't change this.")


EXPLANATIONS = {
    "unreachable": Explanation(
        _("The storage doesn't respond"),
        _("The location was not checked, or not completely."),
        _(
            "Check that the storage runs, its file system is mounted and its account is valid; see its entry in STORAGE. "
            "Then run fsck again."
        ),
    ),
    "missing": Explanation(
        _("A Ready snapshot has no data"),
        _(
            "A customer sees this snapshot as Ready and pays for it, but it can't be restored: someone deleted its data "
            "outside the portal, a file system isn't mounted, or an older copy of the storage is in use."
        ),
        _(
            "First check that the right file system is mounted at the storage's root; if it wasn't, nothing is lost. Else "
            "copy the folder back from a backup of the storage. Without one, inform the customer, delete the snapshot in "
            "the portal, which ends its billing, and refund what was charged since it was lost."
        ),
    ),
    "locked-missing": Explanation(
        _("A locked snapshot has no data"),
        _(
            "Nobody can delete what is locked in the portal, so someone deleted its data outside of it, with access to the "
            "storage; or a file system isn't mounted, or an older copy of the storage is in use."
        ),
        _(
            "First check that the right file system is mounted. Else treat it as an incident: find out who had access, copy "
            "the data back from a backup of the storage, and inform the customer."
        ),
    ),
    "lock-broken": Explanation(
        _("A locked snapshot isn't Ready"),
        _("The database's triggers refuse that, so someone dropped them or restored rows around them."),
        _("Treat it as an incident: find out who had access to the database, and whether the snapshot's data is left."),
    ),
    "volume-missing": Explanation(
        _("A volume has no disk"),
        _("The portal offers this volume for snapshots, but storage doesn't have it: every snapshot will fail."),
        _(
            "If it was deleted outside the portal, set its date of deletion in admin; its snapshots stay. Else copy the "
            "disk back from a backup of the storage, or create a new volume from its latest snapshot."
        ),
    ),
    "corrupt": Explanation(
        _("A snapshot is damaged"),
        _(
            "A part of it is missing, its manifest can't be read, or its data isn't what was captured. Restoring it would "
            "be refused or bring back wrong data."
        ),
        _(
            "Copy its folder back from a backup of the storage. Without one, check the disks, inform the customer, and take "
            "a new snapshot while the volume is healthy."
        ),
        _(
            "With --read, --repair marks the snapshot as damaged: its billing ends and the customer is notified. Nothing is "
            "deleted."
        ),
    ),
    "mismatch": Explanation(
        _("Storage and portal disagree about a snapshot"),
        _(
            "Its size, checksum or time of capture in storage differs from what the portal recorded. Either the database or "
            "the storage is an older copy, or someone edited the manifest."
        ),
        _(
            "Don't restore it before you know which side is right. Compare manifest.json with the disk image in admin, run "
            "fsck --read, and correct the other side."
        ),
    ),
    "damaged": Explanation(
        _("A disk is known to be damaged"),
        _(
            "A verification, a restore or a new volume read data other than what was captured. The customer was notified "
            "and hasn't been charged for the snapshot since."
        ),
        _(
            "Copy the disk back from a backup of the storage and verify the snapshot again, which clears the mark. Else "
            "agree with the customer to delete it."
        ),
        _(
            "--repair reads it again and clears the mark if the data matches. The snapshot can then be used again, its "
            "billing resumes, and the project's members are notified."
        ),
    ),
    "unverified": Explanation(
        _("A snapshot has never been read"),
        _("It has no checksum and no operation is computing one, so damage can't be detected."),
        _("Verify it on its page, or run fsck --repair."),
        _("--repair requests a verification."),
    ),
    "orphan": Explanation(
        _("Storage holds something unknown to the portal"),
        _(
            "No volume or snapshot has this ID. After a restore of an older database it was created since then, and may be "
            "the only copy."
        ),
        _(
            "Find out whose it is: manifest.json beside a snapshot's data names the volume and the time. Import a disk as a "
            "new volume with manage.py import_volume. Delete it by hand if nobody needs it."
        ),
    ),
    "foreign": Explanation(
        _("The storage's folder has an unexpected file"),
        _("The portal didn't create it. It uses space and is never deleted."),
        _("Find out who put it there, and move it elsewhere."),
    ),
    "partial": Explanation(
        _("An incomplete file was left behind"),
        _("A process died while writing or deleting it, and no operation will continue. It only uses space."),
        _(
            "Nothing: the scheduler deletes it within an hour. If it stays, check that a scheduler runs. If its ID is also "
            "reported as missing, it is kept because it may be the only copy: remove the dot and the suffix from its name."
        ),
        _("--repair deletes it, unless an operation uses it or the portal needs it."),
    ),
    "undeleted": Explanation(
        _("Data of a deleted or failed snapshot remains"),
        _("The portal no longer needs it and nobody pays for it, but it uses space."),
        _(
            "Run --repair for deleted snapshots. Delete a failed one in the portal, but not after a restore of an older "
            "database: it may have become Ready since."
        ),
        _("--repair deletes the data of deleted snapshots."),
    ),
    "volume-undeleted": Explanation(
        _("The disk of a deleted volume remains"),
        _("The portal shows this volume as deleted or failed, but storage still has its disk."),
        _(
            "Run --repair for a volume whose deletion a user requested. Otherwise: if it was meant to be deleted, delete "
            "the disk by hand. If not, clear its date of deletion in admin and set it to available."
        ),
        _("--repair deletes the disk of a volume whose deletion a user requested."),
    ),
    "drill-undeleted": Explanation(
        _("The temporary volume of a restore drill remains"),
        _("The drill has ended. Nobody sees this volume and nobody pays for it, but it uses space."),
        _("Nothing: the scheduler deletes it within minutes. If it stays, check that a scheduler runs."),
        _("--repair deletes it."),
    ),
    "volume-size": Explanation(
        _("A volume's disk has another size"),
        _(
            "Snapshots and restores of it fail. The disk was resized or truncated, or replaced by a link, a pipe or a "
            "folder."
        ),
        _(
            "Run --repair if a user has grown it. Otherwise put back a regular file of exactly the volume's size. To keep a "
            "disk of another size, import it as a new volume with manage.py import_volume."
        ),
        _("--repair records and charges the size that a user requested last, if the disk has it although that failed."),
    ),
    "stuck": Explanation(
        _("A snapshot or volume waits for an operation that doesn't exist"),
        _(
            "It is being captured, created or deleted, but no operation will do it. The portal never writes such rows: the "
            "database was edited by hand, or a deletion failed for good."
        ),
        _("Run --repair. If a deletion fails again, its operation in admin has the reason."),
        _("--repair requests an accepted deletion again, and fails captures and creations that were waiting."),
    ),
    "overdue": Explanation(
        _("No worker is picking up an operation"),
        _("It is pending, or its worker died, and no scheduler has enqueued it for minutes."),
        _("Start the scheduler, and find out from its log why it stopped."),
        _("--repair enqueues it again."),
    ),
    "not-charged": Explanation(
        _("A Ready snapshot isn't charged"),
        _("Billing has no running usage of it, or usage of another size."),
        _(
            "See in admin when its usage ended and why. Decide whether to charge the customer from now on, or for the past "
            "as well."
        ),
    ),
    "charged": Explanation(
        _("A customer is charged for a snapshot that can't be used"),
        _("Billing has running usage of a snapshot that is not Ready, or is damaged. The charge grows every hour."),
        _("Run --repair where it applies. Else end the usage in admin, and refund the difference."),
        _(
            "--repair ends the usage at the time the damage was found or the deletion was accepted. Without either, it "
            "changes nothing."
        ),
    ),
}
