"""Users, the customers they belong to, and the projects they share."""

import uuid
from datetime import datetime
from functools import cached_property
from typing import NamedTuple
from zoneinfo import ZoneInfo, available_timezones

from django.contrib.auth.base_user import AbstractBaseUser, BaseUserManager
from django.contrib.auth.models import PermissionsMixin
from django.core.exceptions import ValidationError
from django.core.validators import MaxValueValidator
from django.db import models
from django.db.models import F, Q
from django.db.models.functions import Lower
from django.utils import timezone
from django.utils.translation import gettext_lazy as _

from cng_portal.common.money import DEFAULT_CURRENCY, currency_choices
from cng_portal.common.names import NameField
from cng_portal.common.preferences import DateFormat
from cng_portal.mail.models import mail_field

UNLIMITED = -1


def validate_time_zone(value: str) -> None:
    if value not in available_timezones():
        raise ValidationError(
            _("“%(value)s” is not a time zone. Enter an IANA name such as Asia/Yangon."),
            params={"value": value},
        )


class BillingType(models.TextChoices):
    PREPAID = "prepaid", _("Prepaid")
    POSTPAID = "postpaid", _("Postpaid")


class Role(models.TextChoices):
    OWNER = "owner", _("Owner")
    MEMBER = "member", _("Member")
    VIEWER = "viewer", _("Viewer")


ROLES_THAT_CHANGE = (Role.OWNER, Role.MEMBER)


class Theme(models.TextChoices):
    SYSTEM = "", _("Same as the system")
    LIGHT = "light", _("Light")
    DARK = "dark", _("Dark")


MAX_RECYCLE_BIN_DAYS = 365
# Limits of a new customer until support raises them.
NEW_CUSTOMER_VOLUMES, NEW_CUSTOMER_VOLUME_GB = 100, 10_000


class QuotaModel(models.Model):
    """Limits on snapshots and volumes that are not deleted; -1 means unlimited."""

    snapshot_quota = models.IntegerField(
        _("snapshots"), default=UNLIMITED, help_text=_("How many; -1 means unlimited.")
    )
    snapshot_gb_quota = models.IntegerField(
        _("snapshots, GB"), default=UNLIMITED, help_text=_("Sum of their sizes; -1 means unlimited.")
    )

    volume_quota = models.IntegerField(_("volumes"), default=UNLIMITED, help_text=_("How many; -1 means unlimited."))
    volume_gb_quota = models.IntegerField(
        _("volumes, GB"), default=UNLIMITED, help_text=_("Sum of their sizes; -1 means unlimited.")
    )

    class Meta:
        abstract = True
        constraints = [
            models.CheckConstraint(
                condition=Q(snapshot_quota__gte=UNLIMITED)
                & Q(snapshot_gb_quota__gte=UNLIMITED)
                & Q(volume_quota__gte=UNLIMITED)
                & Q(volume_gb_quota__gte=UNLIMITED),
                name="%(app_label)s_%(class)s_quotas",
                violation_error_message=_("A quota is a whole number, or -1 for unlimited."),
            )
        ]


class Customer(QuotaModel):
    """An account that is billed. Its row is also the lock for per-customer limits: see `lock_customer`."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    volume_quota = models.IntegerField(
        _("volumes"), default=NEW_CUSTOMER_VOLUMES, help_text=_("How many; -1 means unlimited.")
    )
    volume_gb_quota = models.IntegerField(
        _("volumes, GB"), default=NEW_CUSTOMER_VOLUME_GB, help_text=_("Sum of their sizes; -1 means unlimited.")
    )
    number = models.PositiveIntegerField(_("customer number"), unique=True)
    name = NameField(_("name"))
    billing_type = models.CharField(
        _("billing type"), max_length=8, choices=BillingType.choices, default=BillingType.PREPAID
    )
    currency = models.CharField(_("currency"), max_length=3, choices=currency_choices, default=DEFAULT_CURRENCY)
    time_zone = models.CharField(_("time zone"), max_length=64, default="Asia/Yangon", validators=[validate_time_zone])
    recycle_bin_days = models.PositiveSmallIntegerField(
        _("days in the recycle bin"),
        null=True,
        blank=True,
        validators=[MaxValueValidator(MAX_RECYCLE_BIN_DAYS)],
        help_text=_(
            "How long deleted snapshots and backups can be put back, at most 365 days; 0: not at all. Empty: the default. "
            "A longer time counts at once, a shorter one only for what is deleted later."
        ),
    )
    needs_approval = models.BooleanField(
        _("needs a second owner"),
        default=False,
        db_default=False,
        help_text=_(
            "Deleting past the recycle bin, lifting a lock and changing who is an owner wait until another owner approves "
            "them. Owners turn it on. Turn it off only if no second owner is left, and once you have verified who is asking."
        ),
    )
    locked_at = models.DateTimeField(default=timezone.now, editable=False)
    # When a worker last claimed one of its operations: customers take turns.
    last_served_at = models.DateTimeField(null=True, editable=False)
    created_at = models.DateTimeField(_("created"), default=timezone.now, editable=False)

    class Meta(QuotaModel.Meta):
        verbose_name = _("customer")
        verbose_name_plural = _("customers")
        ordering = ["number"]
        constraints = [
            *QuotaModel.Meta.constraints,
            models.CheckConstraint(
                condition=Q(recycle_bin_days__isnull=True) | Q(recycle_bin_days__lte=MAX_RECYCLE_BIN_DAYS),
                name="accounts_customer_recycle_bin_days",
                violation_error_message=_("At most 365 days."),
            ),
        ]

    def __str__(self) -> str:
        return f"{self.name} ({self.crn})"

    @property
    def crn(self) -> str:
        return f"#{self.number:06d}"

    @property
    def zone(self) -> ZoneInfo:
        return ZoneInfo(self.time_zone)


class UserManager(BaseUserManager["User"]):
    def get_queryset(self) -> models.QuerySet["User"]:
        # Every page shows the customer: one query for both.
        return super().get_queryset().select_related("customer")

    def create_user(self, email: str, password: str | None = None, **fields: object) -> "User":
        if not email:
            raise ValueError("A user needs an e-mail address.")
        user = self.model(email=email.strip().lower(), **fields)
        user.set_password(password)
        user.save(using=self._db)
        return user

    def create_superuser(self, email: str, password: str | None = None, **fields: object) -> "User":
        return self.create_user(email, password, is_staff=True, is_superuser=True, **fields)

    def get_by_natural_key(self, email: str | None) -> "User":
        return self.get(email__iexact=email)


class ProjectRole(NamedTuple):
    """A project that a user sees, and the role that the user has in it."""

    id: uuid.UUID
    customer_id: uuid.UUID
    role: str
    archived_at: datetime | None
    currency: str
    files_shared_at: datetime | None


class User(AbstractBaseUser, PermissionsMixin):
    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    email = models.EmailField(_("e-mail"), unique=True)
    name = NameField(_("name"), blank=True)
    customer = models.ForeignKey(
        Customer,
        verbose_name=_("customer"),
        on_delete=models.PROTECT,
        null=True,
        blank=True,
        related_name="people",
        help_text=_("The account whose number and credits this user sees. Administrators need none."),
    )
    is_active = models.BooleanField(_("active"), default=True)
    is_staff = models.BooleanField(_("administrator"), default=False, help_text=_("May use Django admin."))
    date_joined = models.DateTimeField(_("joined"), default=timezone.now, editable=False)
    time_zone = models.CharField(
        _("time zone"),
        max_length=64,
        blank=True,
        db_default="",
        validators=[validate_time_zone],
        help_text=_("Defaults to the customer's."),
    )
    date_format = models.CharField(
        _("date format"),
        max_length=16,
        choices=DateFormat.choices,
        default=DateFormat.WORDS,
        db_default=DateFormat.WORDS.value,
    )
    theme = models.CharField(
        _("theme"), max_length=5, choices=Theme.choices, default=Theme.SYSTEM, db_default="", blank=True
    )

    objects = UserManager()

    USERNAME_FIELD = "email"
    EMAIL_FIELD = "email"

    class Meta:
        verbose_name = _("user")
        verbose_name_plural = _("users")
        ordering = ["email"]
        constraints = [
            models.UniqueConstraint(
                Lower("email"),
                name="accounts_user_email_ci",
                violation_error_message=_("This e-mail is already in use."),
            )
        ]

    def __str__(self) -> str:
        return self.name or self.email

    @property
    def zone(self) -> ZoneInfo | None:
        """The user's own time zone, else the customer's, else None."""
        if self.time_zone:
            return ZoneInfo(self.time_zone)
        return self.customer.zone if self.customer else None

    @cached_property
    def project_roles(self) -> list[ProjectRole]:
        """The projects that the user sees, archived ones too; one query for the life of the instance."""
        rows = self.memberships.values_list(
            "project_id",
            "project__customer_id",
            "role",
            "project__archived_at",
            "project__customer__currency",
            "project__files_shared_at",
        )
        return [ProjectRole(*row) for row in rows]

    @cached_property
    def roles(self) -> dict[uuid.UUID, str]:
        """{project ID: role}"""
        return {project.id: project.role for project in self.project_roles}

    @property
    def customer_ids(self) -> set[uuid.UUID]:
        """IDs of the customers the user belongs to through a project."""
        return {project.customer_id for project in self.project_roles}

    @property
    def owns_customer(self) -> bool:
        """Return whether the user owns a project of their own customer."""
        return any(
            project.role == Role.OWNER and project.customer_id == self.customer_id for project in self.project_roles
        )

    @property
    def changeable_project_ids(self) -> list[uuid.UUID]:
        """Return the IDs of the projects that the user may change. Archived ones can't be changed."""
        return [
            project.id
            for project in self.project_roles
            if project.role in ROLES_THAT_CHANGE and project.archived_at is None
        ]

    def can_change(self, project_id: uuid.UUID) -> bool:
        return project_id in self.changeable_project_ids

    @property
    def readable_project_ids(self) -> list[uuid.UUID]:
        """The projects in whose snapshots the user can read files: as a viewer only where an owner allows it."""
        return [
            project.id
            for project in self.project_roles
            if project.archived_at is None and (project.role in ROLES_THAT_CHANGE or project.files_shared_at)
        ]

    def can_read_files(self, project_id: uuid.UUID) -> bool:
        return project_id in self.readable_project_ids


class ProjectQuerySet(models.QuerySet["Project"]):
    def visible_to(self, user: User) -> "ProjectQuerySet":
        return self.filter(pk__in=list(user.roles))

    def changeable_by(self, user: User) -> "ProjectQuerySet":
        return self.filter(pk__in=user.changeable_project_ids)


class Project(QuotaModel):
    """How a customer organizes resources and shares them with colleagues. `Default` exists from the start."""

    DEFAULT_NAME = "Default"

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    customer = models.ForeignKey(
        Customer, verbose_name=_("customer"), on_delete=models.PROTECT, related_name="projects"
    )
    name = NameField(_("name"))
    created_at = models.DateTimeField(_("created"), default=timezone.now, editable=False)
    archived_at = models.DateTimeField(_("archived"), null=True, blank=True, editable=False)
    files_shared_at = models.DateTimeField(
        _("files shared"),
        null=True,
        blank=True,
        editable=False,
        help_text=_("Since when viewers can read the files in snapshots. Empty: they can't."),
    )
    members = models.ManyToManyField(User, through="Membership", related_name="projects")

    objects = ProjectQuerySet.as_manager()

    class Meta(QuotaModel.Meta):
        verbose_name = _("project")
        verbose_name_plural = _("projects")
        ordering = ["name"]
        constraints = [
            *QuotaModel.Meta.constraints,
            models.UniqueConstraint(
                F("customer"),
                Lower("name"),
                name="accounts_project_name",
                violation_error_message=_("The customer already has a project of this name."),
            ),
        ]

    def __str__(self) -> str:
        return self.name


class Membership(models.Model):
    project = models.ForeignKey(
        Project, verbose_name=_("project"), on_delete=models.CASCADE, related_name="memberships"
    )
    user = models.ForeignKey(User, verbose_name=_("user"), on_delete=models.CASCADE, related_name="memberships")
    role = models.CharField(_("role"), max_length=8, choices=Role.choices)

    class Meta:
        verbose_name = _("membership")
        verbose_name_plural = _("memberships")
        constraints = [
            models.UniqueConstraint(
                fields=["project", "user"],
                name="accounts_membership_once",
                violation_error_message=_("This user is already a member of the project."),
            )
        ]

    def __str__(self) -> str:
        return f"{self.user} · {self.project} · {self.get_role_display()}"


class Invitation(models.Model):
    """An invitation of an e-mail address to a project. Its signed link works once, until it expires.

    Accepted and revoked invitations are kept.
    """

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    project = models.ForeignKey(
        Project, verbose_name=_("project"), on_delete=models.CASCADE, related_name="invitations"
    )
    email = models.EmailField(_("e-mail"))
    role = models.CharField(_("role"), max_length=8, choices=Role.choices)
    invited_by = models.ForeignKey(
        User, verbose_name=_("invited by"), on_delete=models.CASCADE, related_name="invitations_sent"
    )
    created_at = models.DateTimeField(_("created"), default=timezone.now, editable=False)
    expires_at = models.DateTimeField(_("expires"))
    mail = mail_field()
    accepted_at = models.DateTimeField(_("accepted"), null=True, blank=True, editable=False)
    accepted_by = models.ForeignKey(
        User,
        verbose_name=_("accepted by"),
        on_delete=models.CASCADE,
        null=True,
        blank=True,
        editable=False,
        related_name="invitations_accepted",
    )
    revoked_at = models.DateTimeField(_("revoked"), null=True, blank=True, editable=False)

    class Meta:
        verbose_name = _("invitation")
        verbose_name_plural = _("invitations")
        ordering = ["-created_at"]
        constraints = [
            models.UniqueConstraint(
                F("project"),
                Lower("email"),
                condition=Q(accepted_at=None, revoked_at=None),
                name="accounts_invitation_once",
                violation_error_message=_("This address has already been invited to the project."),
            ),
            models.CheckConstraint(
                condition=Q(accepted_at=None) | Q(revoked_at=None),
                name="accounts_invitation_one_end",
                violation_error_message=_("An invitation is either accepted or revoked."),
            ),
        ]

    def __str__(self) -> str:
        return f"{self.email} · {self.project}"

    @property
    def is_expired(self) -> bool:
        return self.expires_at <= timezone.now()


class Act(models.TextChoices):
    """What an application credential may do besides reading."""

    SNAPSHOT = "snapshot", _("Take, rename, label, lock and put back snapshots")
    VOLUME = "volume", _("Create, grow, rename and label volumes")
    RESTORE = "restore", _("Restore volumes, and create volumes from snapshots")
    DELETE = "delete", _("Delete snapshots and volumes")
    BILL = "bill", _("See prices and, as an owner, the project's usage and invoices")


class ApplicationCredentialQuerySet(models.QuerySet["ApplicationCredential"]):
    def visible_to(self, user: User) -> "ApplicationCredentialQuerySet":
        """Return the user's own, and those of the projects that the user owns."""
        owned = [project_id for project_id, role in user.roles.items() if role == Role.OWNER]
        return self.filter(Q(user=user) | Q(project__in=owned))

    def present(self) -> "ApplicationCredentialQuerySet":
        return self.filter(revoked_at=None)


class ApplicationCredential(models.Model):
    """What a program signs in with, as one user in one project. Only a hash of its secret is stored.

    It is valid while the user is active and has at least its role in the project. See credentials.py.
    """

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    user = models.ForeignKey(
        User, verbose_name=_("user"), on_delete=models.CASCADE, related_name="application_credentials"
    )
    project = models.ForeignKey(
        Project, verbose_name=_("project"), on_delete=models.CASCADE, related_name="application_credentials"
    )
    name = NameField(_("name"))
    secret_hash = models.CharField(max_length=64, editable=False)
    role = models.CharField(_("role"), max_length=8, choices=Role.choices)
    acts = models.JSONField(_("permissions"), default=list, blank=True)
    networks = models.JSONField(_("allowed networks"), default=list, blank=True)
    created_at = models.DateTimeField(_("created"), default=timezone.now, editable=False)
    expires_at = models.DateTimeField(_("expires"), null=True, blank=True)
    revoked_at = models.DateTimeField(_("revoked"), null=True, blank=True, editable=False)
    last_used_at = models.DateTimeField(_("last used"), null=True, blank=True, editable=False)
    last_used_from = models.GenericIPAddressField(_("last used from"), null=True, blank=True, editable=False)

    objects = ApplicationCredentialQuerySet.as_manager()

    class Meta:
        verbose_name = _("application credential")
        verbose_name_plural = _("application credentials")
        ordering = ["name", "id"]
        constraints = [
            models.UniqueConstraint(
                F("user"),
                Lower("name"),
                condition=Q(revoked_at=None),
                name="accounts_credential_name",
                violation_error_message=_("You already have a credential of this name."),
            )
        ]

    def __str__(self) -> str:
        return self.name

    @property
    def act_labels(self) -> list[str]:
        return [str(act.label) for act in Act if act in self.acts]


class IdempotencyKey(models.Model):
    """A write of a program, by the key that the program gave it. See snapshots/api/v1/idempotency.py.

    `answer` is what it answered, None while it is processed.
    """

    credential = models.ForeignKey(
        ApplicationCredential, on_delete=models.CASCADE, related_name="idempotency_keys", db_index=False
    )
    key = models.CharField(max_length=255)
    request_hash = models.CharField(max_length=64)
    answer = models.JSONField(null=True)
    created_at = models.DateTimeField(default=timezone.now)

    class Meta:
        indexes = [models.Index(fields=["created_at"], name="accounts_idempotency_by_age")]
        constraints = [models.UniqueConstraint(fields=["credential", "key"], name="accounts_idempotency_key_once")]

    def __str__(self) -> str:
        return self.key


class Submission(models.Model):
    """A submitted form, by its key. `url` is where it redirected, "" while it is processed. See submissions.py."""

    key = models.UUIDField(primary_key=True)
    user = models.ForeignKey(User, on_delete=models.CASCADE, related_name="+")
    url = models.CharField(max_length=300, blank=True)
    created_at = models.DateTimeField(default=timezone.now)

    def __str__(self) -> str:
        return str(self.key)


class ApprovalQuerySet(models.QuerySet["Approval"]):
    def visible_to(self, user: User) -> "ApprovalQuerySet":
        """Owners see the requests of their customer, others their own."""
        own = Q(requested_by=user)
        return self.filter(own | Q(customer=user.customer_id) if user.owns_customer else own)

    def open(self, at: datetime) -> "ApprovalQuerySet":
        return self.filter(outcome="", expires_at__gt=at)


class Approval(models.Model):
    """A request that another owner has to approve before it is done. See approvals.py.

    `target_id` is the ID of what is acted on; `reason` and `role` are what the action was asked with.
    """

    class Outcome(models.TextChoices):
        APPROVED = "approve", _("Approved")
        REJECTED = "reject", _("Rejected")
        WITHDRAWN = "withdraw", _("Withdrawn")
        EXPIRED = "expire", _("Expired")

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    customer = models.ForeignKey(
        Customer, verbose_name=_("customer"), on_delete=models.PROTECT, related_name="approvals"
    )
    project = models.ForeignKey(
        Project, verbose_name=_("project"), on_delete=models.PROTECT, null=True, blank=True, related_name="+"
    )
    action = models.CharField(_("action"), max_length=30)
    target_id = models.CharField(_("target"), max_length=36)
    target_name = models.CharField(_("name"), max_length=254)
    reason = models.CharField(_("reason"), max_length=500, blank=True)
    role = models.CharField(_("role"), max_length=8, choices=Role.choices, blank=True)
    requested_by = models.ForeignKey(
        User, verbose_name=_("requested by"), on_delete=models.PROTECT, related_name="approvals_requested"
    )
    requested_at = models.DateTimeField(_("requested"))
    expires_at = models.DateTimeField(_("expires"))
    decided_by = models.ForeignKey(
        User,
        verbose_name=_("decided by"),
        on_delete=models.PROTECT,
        null=True,
        blank=True,
        related_name="approvals_decided",
    )
    decided_at = models.DateTimeField(_("decided"), null=True, blank=True)
    outcome = models.CharField(_("outcome"), max_length=8, choices=Outcome.choices, blank=True)

    objects = ApprovalQuerySet.as_manager()

    class Meta:
        verbose_name = _("approval")
        verbose_name_plural = _("approvals")
        ordering = ["-requested_at", "-id"]
        constraints = [
            models.UniqueConstraint(
                fields=["action", "target_id"], condition=Q(outcome=""), name="accounts_approval_open_once"
            ),
            models.CheckConstraint(
                condition=Q(outcome="", decided_by=None, decided_at=None)
                | Q(outcome="expire", decided_by=None, decided_at__isnull=False)
                | Q(outcome="withdraw", decided_by=F("requested_by"), decided_at__isnull=False)
                | Q(
                    Q(outcome__in=["approve", "reject"], decided_by__isnull=False, decided_at__isnull=False)
                    & ~Q(decided_by=F("requested_by"))
                    & Q(decided_at__lt=F("expires_at"))
                ),
                name="accounts_approval_decided",
                violation_error_message=_("Another owner decides, before the request expires."),
            ),
        ]

    def __str__(self) -> str:
        return f"{self.action} · {self.target_name}"
