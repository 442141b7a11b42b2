"""The queue of outgoing e-mail: see services.send_due for how it is delivered."""

import uuid
from datetime import datetime, timedelta

from django.db import models
from django.db.models import Q
from django.utils import timezone
from django.utils.translation import gettext_lazy as _

LONGEST_BACKOFF = timedelta(hours=1)


class OutgoingMailQuerySet(models.QuerySet["OutgoingMail"]):
    def waiting(self) -> "OutgoingMailQuerySet":
        return self.filter(sent_at=None, failed_at=None)

    def due(self, now: datetime) -> "OutgoingMailQuerySet":
        # Rows never tried are due at once: the clock of the machine that enqueued them may be ahead of ours. A time that no
        # backoff reaches was set before the clock was turned back.
        is_due = (
            Q(next_attempt_at=None) | Q(next_attempt_at__lte=now) | Q(next_attempt_at__gt=now + 2 * LONGEST_BACKOFF)
        )
        return self.waiting().filter(is_due)


class OutgoingMail(models.Model):
    """One e-mail to one address. The body is erased once it is sent or has expired, because its links grant access."""

    class Kind(models.TextChoices):
        NOTIFICATION = "notification", _("Notification")
        INVITATION = "invitation", _("Invitation")
        ACCOUNT = "account", _("Sign-in")
        OPERATIONS = "operations", _("To administrators")

    class State(models.TextChoices):
        QUEUED = "queued", _("Queued")
        DELAYED = "delayed", _("Delayed")
        SENT = "sent", _("Sent")
        FAILED = "failed", _("Failed")

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    kind = models.CharField(_("kind"), max_length=12, choices=Kind.choices)
    recipient = models.CharField(_("recipient"), max_length=254)
    subject = models.CharField(_("subject"), max_length=255)
    body = models.TextField(_("body"), blank=True)
    created_at = models.DateTimeField(_("created"), default=timezone.now, editable=False)
    expires_at = models.DateTimeField(_("expires"), help_text=_("It fails when it could not be sent until then."))
    attempts = models.PositiveIntegerField(_("attempts"), default=0)
    next_attempt_at = models.DateTimeField(
        _("next attempt"), null=True, help_text=_("While an attempt runs, when another process may take it over.")
    )
    sent_at = models.DateTimeField(_("sent"), null=True)
    failed_at = models.DateTimeField(_("failed"), null=True)
    error = models.TextField(_("last error"), blank=True)

    objects = OutgoingMailQuerySet.as_manager()

    class Meta:
        verbose_name = _("outgoing e-mail")
        verbose_name_plural = _("outgoing e-mails")
        indexes = [
            models.Index(fields=["-created_at", "-id"], name="mail_newest"),
            models.Index(
                fields=["attempts", "created_at"], condition=Q(sent_at=None, failed_at=None), name="mail_waiting"
            ),
            models.Index(fields=["-failed_at"], condition=Q(failed_at__isnull=False), name="mail_failed"),
            models.Index(fields=["recipient", "-created_at"], name="mail_by_recipient"),
        ]
        constraints = [
            models.CheckConstraint(
                condition=Q(sent_at=None) | Q(failed_at=None),
                name="mail_sent_or_failed",
                violation_error_message=_("An e-mail was either sent or has failed."),
            )
        ]

    def __str__(self) -> str:
        return f"{self.recipient} · {self.subject}"

    @property
    def state(self) -> State:
        if self.sent_at:
            return self.State.SENT
        if self.failed_at:
            return self.State.FAILED
        return self.State.DELAYED if self.error else self.State.QUEUED


def mail_field() -> "models.OneToOneField[OutgoingMail | None, OutgoingMail | None]":
    """The e-mail of the row that has this field, or None once that is deleted.

    Without a constraint in the database: a backup leaves the e-mails out, because their links grant access, and has to be
    restored without them. Read it with `select_related`, which finds None then.
    """
    return models.OneToOneField(
        OutgoingMail,
        verbose_name=_("e-mail"),
        on_delete=models.SET_NULL,
        null=True,
        editable=False,
        db_constraint=False,
        related_name="+",
    )
