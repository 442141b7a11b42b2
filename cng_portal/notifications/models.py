import uuid

from django.db import models
from django.db.models import Q
from django.utils import timezone
from django.utils.translation import gettext_lazy as _

from cng_portal.accounts.models import User
from cng_portal.mail.models import mail_field


class NotificationQuerySet(models.QuerySet["Notification"]):
    def unread(self) -> "NotificationQuerySet":
        return self.filter(read_at=None)


class Notification(models.Model):
    """Something a user has to know: listed in the bell, and sent once by e-mail.

    `key` names the event, so that an event reported twice is one notification.
    """

    class Level(models.TextChoices):
        INFO = "info", _("Information")
        SUCCESS = "success", _("Success")
        WARNING = "warning", _("Warning")
        DANGER = "danger", _("Failure")

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    user = models.ForeignKey(
        User, verbose_name=_("user"), on_delete=models.CASCADE, related_name="notifications", db_index=False
    )
    key = models.CharField(_("event"), max_length=160)
    level = models.CharField(_("level"), max_length=8, choices=Level.choices)
    title = models.CharField(_("title"), max_length=200)
    text = models.TextField(_("text"), blank=True)
    url = models.CharField(_("page"), max_length=200, blank=True)
    mail = mail_field()
    created_at = models.DateTimeField(_("created"), default=timezone.now, editable=False)
    read_at = models.DateTimeField(_("read"), null=True, blank=True, editable=False)

    objects = NotificationQuerySet.as_manager()

    class Meta:
        verbose_name = _("notification")
        verbose_name_plural = _("notifications")
        indexes = [
            models.Index(fields=["user", "-created_at", "-id"], name="notification_newest"),
            models.Index(fields=["user"], condition=Q(read_at=None), name="notification_unread"),
            models.Index(fields=["created_at"], name="notification_created"),
        ]
        constraints = [
            models.UniqueConstraint(
                fields=["user", "key"],
                name="notification_once",
                violation_error_message=_("This user has been notified of this event already."),
            ),
            models.CheckConstraint(
                condition=~Q(key="") & ~Q(title=""),
                name="notification_not_empty",
                violation_error_message=_("A notification needs an event and a title."),
            ),
        ]

    def __str__(self) -> str:
        return self.title
