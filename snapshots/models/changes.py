"""What changed on a disk from one snapshot to the next. files/unusual.py measures and judges it."""

from django.db import models
from django.db.models import F, Q
from django.utils.translation import gettext_lazy as _

from .snapshots import DiskImage


class DiskChangeQuerySet(models.QuerySet["DiskChange"]):
    def holding(self) -> "DiskChangeQuerySet":
        """Filter for unusual changes that no member has accepted."""
        return self.filter(is_unusual=True, accepted_at=None)


class DiskChange(models.Model):
    """How the files of a disk differ from those of the previous snapshot. Folders don't count.

    `renamed` have the same content under another name. `sampled` of the changed and added files were read, and `unreadable`
    of these look random at their start: encrypted or well compressed.
    """

    disk = models.OneToOneField(DiskImage, on_delete=models.CASCADE, related_name="change")
    previous = models.ForeignKey(DiskImage, on_delete=models.CASCADE, related_name="next_changes")
    files_before = models.BigIntegerField(_("files before"))
    added = models.BigIntegerField(_("added"))
    changed = models.BigIntegerField(_("changed"))
    removed = models.BigIntegerField(_("removed"))
    renamed = models.BigIntegerField(_("renamed"))
    sampled = models.IntegerField(_("sampled"))
    unreadable = models.IntegerField(_("unreadable"))
    # What nine in ten of the volume's last changes stayed within. NULL: there were too few to say.
    usual_share = models.FloatField(_("usual share"), null=True, blank=True)
    is_unusual = models.BooleanField(_("unusual"), default=False)
    # A member let the portal remove snapshots as usual again.
    accepted_at = models.DateTimeField(_("accepted"), null=True, blank=True)

    objects = DiskChangeQuerySet.as_manager()

    class Meta:
        verbose_name = _("change of a disk")
        verbose_name_plural = _("changes of disks")
        constraints = [
            models.CheckConstraint(
                condition=Q(
                    files_before__gt=0,
                    added__gte=0,
                    changed__gte=0,
                    removed__gte=0,
                    renamed__gte=0,
                    unreadable__gte=0,
                    unreadable__lte=F("sampled"),
                ),
                name="disk_change_counts",
            ),
        ]

    def __str__(self) -> str:
        return f"{self.disk_id}: {self.affected} of {self.files_before}"

    @property
    def affected(self) -> int:
        """Return how many of the files before are not there any more as they were."""
        return self.changed + self.removed + self.renamed

    @property
    def share(self) -> float:
        """Return the part of the files before that this is."""
        return self.affected / self.files_before

    @property
    def unreadable_share(self) -> float:
        """Return the estimated share of the files whose content was replaced by an unreadable one.

        New files count only as far as others were removed, because encryption may rename what it replaces.
        """
        replaced = self.changed + min(self.added, self.removed)
        return replaced * self.unreadable / self.sampled / self.files_before if self.sampled else 0.0
