"""Locks for the support desk: read-only, but an administrator can lift one that isn't final, with a reason."""

from typing import Any
from uuid import UUID

from django.contrib import admin, messages
from django.core.exceptions import PermissionDenied
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.shortcuts import get_object_or_404
from django.template.response import TemplateResponse
from django.urls import path, reverse
from django.utils import timezone
from django.utils.html import format_html
from django.utils.safestring import SafeString
from django.utils.translation import gettext

from cng_portal.accounts.approvals import REQUESTED
from cng_portal.accounts.models import User
from cng_portal.common.admin import ReadOnly, SupportAdmin

from .errors import ActionRefused
from .forms import LiftLockForm
from .locks import lift_lock
from .models import SnapshotLock


@admin.register(SnapshotLock)
class SnapshotLockAdmin(ReadOnly, SupportAdmin):
    list_display = ["snapshot", "mode", "until", "final_at", "locked_at", "locked_by", "lifted_at", "lift_link"]
    list_filter = ["mode", ("lifted_at", admin.EmptyFieldListFilter)]
    list_select_related = ["snapshot", "locked_by"]
    search_fields = ["snapshot__name", "reason"]
    uuid_fields = ("pk", "snapshot_id")
    customer_fields = ("snapshot__customer",)
    user_fields = ("locked_by", "lifted_by")

    @admin.display(description="")
    def lift_link(self, lock: SnapshotLock) -> SafeString | str:
        now = timezone.now()
        if lock.lifted_at or lock.until <= now or (lock.final_at and lock.final_at <= now):
            return ""
        return format_html(
            '<a href="{}">{}</a>', reverse("admin:snapshots_lift_lock", args=[lock.pk]), gettext("Lift the lock…")
        )

    def get_urls(self) -> list[Any]:
        lift = path("<uuid:pk>/lift/", self.admin_site.admin_view(self.lift), name="snapshots_lift_lock")
        return [lift, *super().get_urls()]

    def lift(self, request: HttpRequest, pk: UUID) -> HttpResponse:
        if not request.user.has_perm("snapshots.change_snapshotlock"):
            raise PermissionDenied(gettext("You can view locks, but not lift them."))
        lock = get_object_or_404(SnapshotLock.objects.select_related("snapshot"), pk=pk)
        back = reverse("admin:snapshots_snapshotlock_change", args=[pk])
        user, form = request.user, LiftLockForm(request.POST or None)
        assert isinstance(user, User)  # Django admin has signed them in.
        if request.method == "POST" and form.is_valid():
            try:
                lifted = lift_lock(lock=lock, user=user, reason=form.cleaned_data["reason"])
            except ActionRefused as refusal:
                form.add_error(None, str(refusal))
            else:
                is_lifted = lifted.lifted_at is not None
                text = gettext("The account is told that it is lifted.") if is_lifted else REQUESTED
                self.message_user(request, text, messages.SUCCESS)
                return HttpResponseRedirect(back)
        context = {
            **self.admin_site.each_context(request),
            "title": gettext("Lift the lock"),
            "opts": self.opts,
            "lock": lock,
            "form": form,
            "back": back,
        }
        return TemplateResponse(request, "snapshots/admin/lift_lock.html", context)
