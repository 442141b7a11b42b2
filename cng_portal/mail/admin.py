"""Outgoing e-mail for administrators."""

from typing import Any

from django.contrib import admin, messages
from django.db.models import Model, QuerySet
from django.http import HttpRequest
from django.utils import timezone
from django.utils.translation import gettext_lazy as _
from django.utils.translation import ngettext

from cng_portal.common.admin import ReadOnly, SupportAdmin

from . import services
from .models import OutgoingMail, OutgoingMailQuerySet

State = OutgoingMail.State


class StateFilter(admin.SimpleListFilter):
    title = _("state")
    parameter_name = "state"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        return list(State.choices)

    def queryset(self, request: HttpRequest, queryset: OutgoingMailQuerySet) -> QuerySet[OutgoingMail]:
        match self.value():
            case State.QUEUED:
                return queryset.waiting().filter(error="")
            case State.DELAYED:
                return queryset.waiting().exclude(error="")
            case State.SENT:
                return queryset.filter(sent_at__isnull=False)
            case State.FAILED:
                return queryset.filter(failed_at__isnull=False)
        return queryset


@admin.register(OutgoingMail)
class OutgoingMailAdmin(ReadOnly, SupportAdmin):
    """Without the body, because its links grant access."""

    list_display = ["created_at", "recipient", "subject", "kind", "state", "attempts", "next_attempt_at", "error"]
    list_filter = [StateFilter, "kind"]
    search_fields = ["recipient"]
    ordering = ["-created_at", "-id"]
    fields = [
        "id",
        "kind",
        "recipient",
        "subject",
        "state",
        "attempts",
        "error",
        "created_at",
        "next_attempt_at",
        "sent_at",
        "failed_at",
        "expires_at",
    ]
    readonly_fields = fields
    actions = ["send_again"]

    @admin.display(description=_("state"))
    def state(self, mail: OutgoingMail) -> str:
        return str(mail.state.label)

    def has_send_again_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        return request.user.has_perm("mail.change_outgoingmail")

    @admin.action(description=_("Send the selected failed e-mails again"), permissions=["send_again"])
    def send_again(self, request: HttpRequest, mails: OutgoingMailQuerySet) -> None:
        queued = services.retry(mails, now=timezone.now())
        sentence = ngettext("%(count)s e-mail was queued again.", "%(count)s e-mails were queued again.", queued)
        self.message_user(request, sentence % {"count": queued}, messages.SUCCESS if queued else messages.WARNING)
