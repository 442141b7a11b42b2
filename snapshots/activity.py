"""The actions of snapshots, backups and their operations in the activity log."""

from django.utils.translation import gettext_lazy as _

from cng_portal.activity.registry import register

register(
    {
        "snapshot.capture": _("Snapshot requested"),
        "snapshot.rename": _("Snapshot renamed"),
        "labels.change": _("Tags or note changed"),
        "snapshot.move": _("Snapshot moved to another project"),
        "snapshot.restore": _("Restore requested"),
        "snapshot.delete": _("Snapshot deleted"),
        "snapshot.bin": _("Snapshot put in the recycle bin"),
        "snapshot.put_back": _("Snapshot put back from the recycle bin"),
        "snapshot.verify": _("Verification requested"),
        "snapshot.new_volume": _("New volume requested"),
        "snapshot.expiry": _("Expiry date changed"),
        "snapshot.lock": _("Snapshot locked"),
        "snapshot.lengthen_lock": _("Lock lengthened"),
        "snapshot.lift_lock": _("Lock lifted"),
        "snapshot.damaged": _("Snapshot found damaged"),
        "snapshot.sound": _("Snapshot no longer damaged"),
        "snapshot.cancel": _("Operation cancelled"),
        "snapshot.clean_up": _("Cleanup of orphaned files requested"),
        "volume.create_volume": _("Volume requested"),
        "volume.extend_volume": _("Growth of a volume requested"),
        "volume.delete_volume": _("Volume deleted"),
        "volume.clean_up": _("Cleanup of orphaned files requested"),
        "volume.bin": _("Volume put in the recycle bin"),
        "volume.put_back": _("Volume put back from the recycle bin"),
        "volume.rename": _("Volume renamed"),
        "volume.attach": _("Volume attached"),
        "volume.detach": _("Volume detached"),
        # outcomes, recorded by the portal itself
        "ready.capture": _("Snapshot ready"),
        "failed.capture": _("Snapshot failed"),
        "ready.restore": _("Restored"),
        "failed.restore": _("Restore failed"),
        "ready.delete": _("Removed from storage"),
        "failed.delete": _("Deletion failed"),
        "ready.verify": _("Verified"),
        "failed.verify": _("Verification failed"),
        "ready.new_volume": _("New volume ready"),
        "failed.new_volume": _("New volume failed"),
        "ready.create_volume": _("Volume ready"),
        "failed.create_volume": _("Volume could not be created"),
        "ready.extend_volume": _("Volume grown"),
        "failed.extend_volume": _("Volume could not grow"),
        "ready.delete_volume": _("Volume removed from storage"),
        "failed.delete_volume": _("Volume could not be deleted"),
        "ready.clean_up": _("Orphaned files removed"),
        "failed.clean_up": _("Orphaned files could not be removed"),
        "backup.schedule": _("Schedule created"),
        "backup.change": _("Schedule changed"),
        "backup.pause": _("Schedule paused"),
        "backup.resume": _("Schedule resumed"),
        "backup.delete": _("Schedule deleted"),
        "backup.pin": _("Pinned or unpinned"),
        "backup.automatic": _("Automatic backups turned on or off"),
        "backup.missed": _("Scheduled run missed"),
        "backup.failed": _("Scheduled run failed"),
    }
)
register(
    {"snapshot.download_file": _("File downloaded"), "snapshot.download_folder": _("Folder downloaded")},
    about_files=True,
)
