"""What the provider runs: locations, and the customers' virtual machines and volumes in them."""

import uuid
from datetime import time
from typing import Self

from babel import Locale
from django.core.validators import MaxValueValidator, MinValueValidator, RegexValidator
from django.db import models
from django.db.models import Q
from django.utils import timezone, translation
from django.utils.translation import gettext_lazy as _

from cng_portal.accounts.models import Customer, Project, User
from cng_portal.common.money import MICRO
from cng_portal.common.names import NameField, NameKeyField

# Bounds that keep every derived amount within 64 bits: see billing.models.
MAX_HOURLY_PRICE_MICRO = 1_000_000_000 * MICRO
MAX_VOLUME_GB = 1_000_000
MAX_TAG_LENGTH = 40
MAX_NOTE_LENGTH = 500


class Region(models.TextChoices):
    ASIA = "asia", _("Asia")
    SOUTHEAST_ASIA = "southeast-asia", _("Southeast Asia")
    EUROPE = "europe", _("Europe")
    AMERICAS = "americas", _("Americas")
    AFRICA = "africa", _("Africa")
    OCEANIA = "oceania", _("Oceania")


class Interval(models.TextChoices):
    """How often a machine is backed up."""

    DAILY = "daily", _("Daily")
    WEEKLY = "weekly", _("Weekly")
    MONTHLY = "monthly", _("Monthly")


class Weekday(models.IntegerChoices):
    MONDAY = 0, _("Monday")
    TUESDAY = 1, _("Tuesday")
    WEDNESDAY = 2, _("Wednesday")
    THURSDAY = 3, _("Thursday")
    FRIDAY = 4, _("Friday")
    SATURDAY = 5, _("Saturday")
    SUNDAY = 6, _("Sunday")


class LocationQuerySet(models.QuerySet["Location"]):
    def active(self) -> Self:
        return self.filter(active=True)


class Location(models.Model):
    """A data centre. `driver` names an entry of settings.STORAGE; `driver_options` are added to that entry's
    options.
    """

    code = models.CharField(
        _("code"),
        max_length=32,
        primary_key=True,
        # The local driver uses it as the name of a folder: no path traversal.
        validators=[RegexValidator(r"^[A-Z0-9][A-Z0-9-]{0,31}$", _("Capital letters, digits and hyphens only."))],
    )
    city = models.CharField(_("city"), max_length=64)
    country = models.CharField(
        _("country"),
        max_length=2,
        validators=[RegexValidator(r"^[A-Z]{2}$", _("A country is its ISO code of two capital letters, such as MM."))],
    )
    region = models.CharField(_("region"), max_length=16, choices=Region.choices)
    active = models.BooleanField(_("active"), default=True)
    driver = models.CharField(_("storage driver"), max_length=32, default="local")
    driver_options = models.JSONField(_("storage driver options"), default=dict, blank=True)
    encryption = models.CharField(
        _("encryption at rest"),
        max_length=200,
        blank=True,
        default="",
        db_default="",
        help_text=_(
            "What encrypts the data in this location's storage, such as “LUKS on every disk”. Customers read it on the "
            "pages of their volumes and snapshots. Empty: the pages say nothing."
        ),
    )
    # When its storage first answered. From then on, folders that are missing mean that it isn't mounted.
    storage_seen_at = models.DateTimeField(_("storage first seen"), null=True, editable=False)
    # When automatic backups run, and how many are kept.
    default_interval = models.CharField(
        _("interval"), max_length=7, choices=Interval.choices, default=Interval.DAILY.value
    )
    default_weekday = models.PositiveSmallIntegerField(
        _("weekday"), choices=Weekday.choices, null=True, blank=True, help_text=_("Of weekly backups.")
    )
    default_month_day = models.PositiveSmallIntegerField(
        _("day of the month"),
        null=True,
        blank=True,
        validators=[MinValueValidator(1), MaxValueValidator(31)],
        help_text=_("Of monthly backups; in shorter months, the last day."),
    )
    default_at = models.TimeField(
        _("time of day"), default=time(2), help_text=_("In the time zone of each instance's customer.")
    )
    default_retention_count = models.PositiveSmallIntegerField(
        _("backups kept"), default=2, validators=[MinValueValidator(1)]
    )
    charges_outside = models.BooleanField(
        _("charge snapshots created outside"),
        default=False,
        help_text=_("Snapshots created in the cloud cost as much as others, from their import on."),
    )
    charges_missing = models.BooleanField(
        _("charge snapshots deleted outside"),
        default=False,
        help_text=_("A snapshot deleted in the cloud is charged until it is deleted here, too."),
    )

    objects = LocationQuerySet.as_manager()

    class Meta:
        verbose_name = _("location")
        verbose_name_plural = _("locations")
        ordering = ["code"]
        constraints = [
            models.CheckConstraint(
                condition=Q(default_interval="daily", default_weekday=None, default_month_day=None)
                | Q(
                    default_interval="weekly",
                    default_weekday__isnull=False,
                    default_weekday__lte=6,
                    default_month_day=None,
                )
                | Q(
                    default_interval="monthly",
                    default_weekday=None,
                    default_month_day__isnull=False,
                    default_month_day__range=(1, 31),
                ),
                name="inventory_location_default_interval",
                violation_error_message=_(
                    "Weekly backups need a weekday, monthly ones a day of the month, daily ones neither."
                ),
            ),
            models.CheckConstraint(
                condition=Q(default_retention_count__gte=1),
                name="inventory_location_default_retention_count",
                violation_error_message=_("Keep at least one backup."),
            ),
        ]

    def __str__(self) -> str:
        return self.code

    @property
    def country_name(self) -> str:
        """In the reader's language, from CLDR: `Myanmar (Burma)`."""
        locale = Locale.parse(translation.get_language() or "en", sep="-")
        return locale.territories.get(self.country, self.country)

    @property
    def flag(self) -> str:
        """The country's flag as an emoji: its two letters as regional indicators."""
        return "".join(chr(ord(letter) + 0x1F1A5) for letter in self.country)


class CloudProject(models.Model):
    """A project of the cloud behind a location, as of the last sync.

    Its volumes and machines are imported once an administrator has assigned it to a project of the portal.
    """

    location = models.ForeignKey(
        Location, verbose_name=_("location"), on_delete=models.PROTECT, related_name="cloud_projects"
    )
    external_id = models.CharField(_("id in the cloud"), max_length=64)
    name = models.CharField(_("name in the cloud"), max_length=255, blank=True)
    project = models.ForeignKey(
        Project,
        verbose_name=_("project"),
        on_delete=models.PROTECT,
        null=True,
        blank=True,
        related_name="cloud_projects",
        help_text=_("Where its volumes and instances appear. Nothing is imported while this is empty."),
    )
    volume_count = models.PositiveIntegerField(_("volumes"), null=True, blank=True)
    volume_quota = models.IntegerField(_("volume quota"), null=True, blank=True, help_text=_("-1 is unlimited."))
    snapshot_count = models.PositiveIntegerField(_("snapshots"), null=True, blank=True)
    snapshot_quota = models.IntegerField(_("snapshot quota"), null=True, blank=True, help_text=_("-1 is unlimited."))
    used_gb = models.PositiveIntegerField(_("GB"), null=True, blank=True, help_text=_("Of volumes and snapshots."))
    gb_quota = models.IntegerField(_("storage quota, GB"), null=True, blank=True, help_text=_("-1 is unlimited."))
    synced_at = models.DateTimeField(_("last sync"), null=True, blank=True)
    missing_since = models.DateTimeField(_("missing since"), null=True, blank=True)
    error = models.TextField(_("error of the last sync"), blank=True)

    class Meta:
        verbose_name = _("cloud project")
        verbose_name_plural = _("cloud projects")
        ordering = ["location", "name", "external_id"]
        constraints = [
            models.UniqueConstraint(
                fields=["location", "external_id"],
                name="inventory_cloud_project_once",
                violation_error_message=_("This cloud project already exists."),
            )
        ]

    def __str__(self) -> str:
        return self.name or self.external_id


class OwnedQuerySet(models.QuerySet):
    """Objects of a project. Every lookup starts from the user."""

    def visible_to(self, user: User) -> Self:
        return self.filter(project_id__in=list(user.roles))

    def changeable_by(self, user: User) -> Self:
        return self.filter(project_id__in=user.changeable_project_ids)

    def present(self) -> Self:
        return self.filter(deleted_at=None)


class VolumeQuerySet(OwnedQuerySet):
    def counted(self) -> Self:
        """Return the volumes that count towards quotas: not those whose deletion was accepted."""
        return self.present().filter(delete_requested_at=None)

    def in_bin(self) -> Self:
        """Return the volumes in the recycle bin."""
        return self.filter(bin_until__isnull=False)

    def in_storage(self) -> Self:
        """Return the volumes whose data has to be in storage."""
        is_available = Q(deleted_at=None, state=Volume.State.AVAILABLE)
        return self.filter(is_available | Q(bin_until__isnull=False))


def once_in_the_cloud(name: str) -> models.UniqueConstraint:
    return models.UniqueConstraint(
        fields=["location", "backend_project", "backend_ref"],
        condition=~Q(backend_ref=""),
        name=name,
        violation_error_message=_("The portal already has an object with this reference."),
    )


class VirtualMachine(models.Model):
    class State(models.TextChoices):
        RUNNING = "running", _("Running")
        STOPPED = "stopped", _("Stopped")

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    project = models.ForeignKey(Project, verbose_name=_("project"), on_delete=models.PROTECT, related_name="vms")
    location = models.ForeignKey(Location, verbose_name=_("location"), on_delete=models.PROTECT, related_name="vms")
    name = NameField(_("name"))
    name_key = NameKeyField()
    state = models.CharField(_("state"), max_length=8, choices=State.choices, default=State.RUNNING)
    vcpus = models.PositiveSmallIntegerField(_("vCPUs"), default=1)
    memory_mb = models.PositiveIntegerField(_("memory, MB"), default=1024)
    hourly_price_micro = models.BigIntegerField(
        _("hourly price, millionths"), default=0, help_text=_("Millionths of the customer's currency for one hour.")
    )
    automatic_backups_since = models.DateTimeField(_("automatic backups since"), null=True, blank=True, editable=False)
    backend_ref = models.CharField(_("backend reference"), max_length=255, blank=True)
    backend_project = models.CharField(
        _("project in the cloud"),
        max_length=64,
        blank=True,
        help_text=_("Its ID there. Empty: the portal's own project."),
    )
    seen_at = models.DateTimeField(_("last seen in the cloud"), null=True, blank=True)
    created_at = models.DateTimeField(_("created"), default=timezone.now)
    deleted_at = models.DateTimeField(_("deleted"), null=True, blank=True)

    objects = OwnedQuerySet.as_manager()

    class Meta:
        verbose_name = _("virtual machine")
        verbose_name_plural = _("virtual machines")
        ordering = ["name", "id"]
        constraints = [
            models.CheckConstraint(
                condition=Q(hourly_price_micro__gte=0, hourly_price_micro__lte=MAX_HOURLY_PRICE_MICRO),
                name="inventory_vm_price",
                violation_error_message=_("An hourly price is between 0 and 1,000,000,000."),
            ),
            once_in_the_cloud("inventory_vm_backend_once"),
        ]

    def __str__(self) -> str:
        return self.name

    @property
    def is_running(self) -> bool:
        return self.state == self.State.RUNNING


class AutomaticBackupSwitch(models.Model):
    """A change of a machine's automatic backups, on or off. `switched_by` is None if the portal did it, for a deleted
    machine. Backups and their charge begin at `starts_at`; switches of earlier versions have none and began at once.
    """

    vm = models.ForeignKey(
        VirtualMachine, verbose_name=_("virtual machine"), on_delete=models.PROTECT, related_name="switches"
    )
    on = models.BooleanField(_("switched on"))
    switched_by = models.ForeignKey(
        User, verbose_name=_("by"), on_delete=models.PROTECT, null=True, blank=True, related_name="+"
    )
    switched_at = models.DateTimeField(_("time"))
    starts_at = models.DateTimeField(_("start"), null=True, blank=True)

    class Meta:
        verbose_name = _("automatic backup switch")
        verbose_name_plural = _("automatic backup switches")
        ordering = ["-switched_at", "-id"]

    def __str__(self) -> str:
        return f"{self.vm}: {_('on') if self.on else _('off')}"


class Tag(models.Model):
    """A short name that a customer gives to volumes and snapshots. Only those in use are suggested."""

    customer = models.ForeignKey(
        Customer, verbose_name=_("customer"), on_delete=models.PROTECT, related_name="tags", db_index=False
    )
    name = NameField(_("name"), max_length=MAX_TAG_LENGTH)
    name_key = NameKeyField()

    class Meta:
        verbose_name = _("tag")
        verbose_name_plural = _("tags")
        ordering = ["name_key", "id"]
        constraints = [
            models.UniqueConstraint(
                fields=["customer", "name_key"],
                name="inventory_tag_once",
                violation_error_message=_("The customer already has this tag."),
            )
        ]

    def __str__(self) -> str:
        return self.name


class Volume(models.Model):
    """A disk. `size_gb` is in GiB. A deleted volume keeps its row, because its snapshots refer to it.

    `available_at` is when it became usable and its charge began, unknown if that was before these times were recorded.
    `delete_requested_at` is when its deletion was accepted and the charge ended, `deleted_at` when the storage had deleted
    it. One whose creation failed is in ERROR and has a `deleted_at`, so that it is listed nowhere. One in the recycle bin
    has a `deleted_at` and a `bin_until`: until then its data is in storage, and it can be put back.
    """

    class State(models.TextChoices):
        CREATING = "creating", _("Creating")
        AVAILABLE = "available", _("Available")
        DELETING = "deleting", _("Deleting")
        ERROR = "error", _("Error")

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    project = models.ForeignKey(Project, verbose_name=_("project"), on_delete=models.PROTECT, related_name="volumes")
    location = models.ForeignKey(Location, verbose_name=_("location"), on_delete=models.PROTECT, related_name="volumes")
    vm = models.ForeignKey(
        VirtualMachine,
        verbose_name=_("attached to"),
        on_delete=models.PROTECT,
        null=True,
        blank=True,
        related_name="volumes",
    )
    position = models.PositiveSmallIntegerField(
        _("position in the VM"), default=0, help_text=_("0 is the root volume.")
    )
    name = NameField(_("name"))
    name_key = NameKeyField()
    size_gb = models.PositiveIntegerField(
        _("size, GB"),
        validators=[
            MinValueValidator(1, _("A volume has at least 1 GB.")),
            MaxValueValidator(MAX_VOLUME_GB, _("A volume has at most %(limit_value)s GB.")),
        ],
    )
    state = models.CharField(_("state"), max_length=9, choices=State.choices, default=State.AVAILABLE)
    backend_ref = models.CharField(_("backend reference"), max_length=255, blank=True)
    backend_project = models.CharField(
        _("project in the cloud"),
        max_length=64,
        blank=True,
        help_text=_("Its ID there. Empty: the portal's own project."),
    )
    seen_at = models.DateTimeField(_("last seen in the cloud"), null=True, blank=True)
    created_at = models.DateTimeField(_("created"), default=timezone.now)
    available_at = models.DateTimeField(_("available"), null=True, blank=True, editable=False)
    delete_requested_at = models.DateTimeField(_("deletion accepted"), null=True, blank=True, editable=False)
    deleted_at = models.DateTimeField(_("deleted"), null=True, blank=True)
    bin_until = models.DateTimeField(_("in the recycle bin until"), null=True, blank=True, editable=False)

    tags = models.ManyToManyField(Tag, verbose_name=_("tags"), blank=True, related_name="volumes")
    # Nullable, so that SQLite adds the column without rebuilding the table.
    note = models.CharField(_("note"), max_length=MAX_NOTE_LENGTH, null=True, blank=True)  # noqa: DJ001
    # Properties of the API, texts by name. See snapshots/api/metadata.py.
    metadata = models.JSONField(_("properties"), null=True, blank=True, editable=False)

    objects = VolumeQuerySet.as_manager()

    class Meta:
        verbose_name = _("volume")
        verbose_name_plural = _("volumes")
        ordering = ["name", "id"]
        indexes = [
            models.Index(fields=["project", "name", "id"], name="inventory_volume_by_name"),
            models.Index(fields=["bin_until"], condition=Q(bin_until__isnull=False), name="inventory_volume_bin_due"),
        ]
        constraints = [
            models.CheckConstraint(
                condition=Q(size_gb__gte=1, size_gb__lte=MAX_VOLUME_GB),
                name="inventory_volume_size",
                violation_error_message=_("A volume has between 1 and 1,000,000 GB."),
            ),
            models.CheckConstraint(
                condition=Q(state="creating", available_at=None, delete_requested_at=None)
                | Q(state__in=["available", "error"], delete_requested_at=None)
                | Q(state="deleting", delete_requested_at__isnull=False),
                name="inventory_volume_state_instants",
                violation_error_message=_("The state doesn't match the times of this volume."),
            ),
            once_in_the_cloud("inventory_volume_backend_once"),
        ]

    def __str__(self) -> str:
        return self.name

    @property
    def customer_id(self) -> uuid.UUID:
        return self.project.customer_id

    @property
    def is_deleted(self) -> bool:
        """Return whether it existed and no longer does, unlike one whose creation failed."""
        return self.deleted_at is not None and self.state != self.State.ERROR

    @property
    def is_in_bin(self) -> bool:
        return self.bin_until is not None
