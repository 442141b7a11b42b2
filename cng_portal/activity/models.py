import uuid
from typing import Any

from django.conf import settings
from django.db import models
from django.db.models import Q
from django.utils import timezone
from django.utils.translation import gettext_lazy as _

from .registry import ABOUT_FILES, get_label

SYSTEM = _("The portal")


class ActivityQuerySet(models.QuerySet["Activity"]):
    def visible_to(self, user: Any) -> "ActivityQuerySet":
        """The user's own actions, those in their projects, and for an owner all those of their customer."""
        visible = Q(actor=user) | Q(project_id__in=list(user.roles))
        if user.owns_customer:
            visible |= Q(customer_id=user.customer_id)
        return self.filter(visible)


class Activity(models.Model):
    """Who did what to which object, when and from where. `services.record` writes it in the transaction of the action.

    Entries never change, and aren't deleted before they are a year old (triggers in migration 0002). Names are copies, so
    that an entry stays true when the user or the object is renamed or deleted. Without an actor, the portal itself acted.
    """

    shown_changes: list[tuple[str, str, str]]  # `changes_for` the reader of the log, set by its view

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    at = models.DateTimeField(_("time"), default=timezone.now, editable=False)
    actor = models.ForeignKey(
        settings.AUTH_USER_MODEL,
        verbose_name=_("user"),
        on_delete=models.PROTECT,
        null=True,
        related_name="activity",
        db_index=False,
    )
    actor_name = models.CharField(_("user's name"), max_length=254, blank=True)
    action = models.CharField(_("action"), max_length=40)
    target_kind = models.CharField(_("target type"), max_length=40, blank=True)
    target_id = models.CharField(_("target ID"), max_length=64, blank=True)
    target_name = models.CharField(_("target"), max_length=254, blank=True)
    customer = models.ForeignKey(
        "accounts.Customer",
        verbose_name=_("customer"),
        on_delete=models.PROTECT,
        null=True,
        related_name="+",
        db_index=False,
    )
    project = models.ForeignKey(
        "accounts.Project",
        verbose_name=_("project"),
        on_delete=models.PROTECT,
        null=True,
        related_name="+",
        db_index=False,
    )
    address = models.GenericIPAddressField(_("IP address"), null=True)
    before = models.JSONField(_("before"), default=dict)
    after = models.JSONField(_("after"), default=dict)

    objects = ActivityQuerySet.as_manager()

    class Meta:
        verbose_name = _("activity")
        verbose_name_plural = _("activity log")
        indexes = [
            models.Index(fields=["customer", "-at", "-id"], name="activity_by_customer"),
            models.Index(fields=["project", "-at", "-id"], name="activity_by_project"),
            models.Index(fields=["actor", "-at", "-id"], name="activity_by_actor"),
            models.Index(fields=["-at", "-id"], name="activity_newest"),
        ]
        constraints = [models.CheckConstraint(condition=~Q(action=""), name="activity_has_action")]

    def __str__(self) -> str:
        return f"{self.at:%Y-%m-%d %H:%M:%S} {self.actor_name} {self.action} {self.target_name}"

    @property
    def label(self) -> str:
        return str(get_label(self.action))

    @property
    def actor_label(self) -> str:
        return self.actor_name or str(SYSTEM)

    @property
    def changes(self) -> list[tuple[str, str, str]]:
        """[(field, before, after)]"""
        names = dict.fromkeys([*self.before, *self.after])
        return [
            (name.replace("_", " "), to_text(self.before.get(name)), to_text(self.after.get(name))) for name in names
        ]

    def changes_for(self, user: Any) -> list[tuple[str, str, str]]:
        """Return `changes`, without names of files that the user may not read."""
        if self.action in ABOUT_FILES and self.actor_id != user.pk and not user.can_read_files(self.project_id):
            return []
        return self.changes


def to_text(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(to_text(item) for item in value)
    return "" if value is None else str(value)
