"""Schedules and runs for the support desk, read-only. Users' changes go through the services."""

from typing import Any

from django.contrib import admin
from django.http import HttpRequest
from django.utils.translation import gettext_lazy as _

from cng_portal.common.admin import ReadOnly, SupportAdmin

from ..models import BackupRun, BackupSchedule


class BackupRunInline(ReadOnly, admin.TabularInline):
    model = BackupRun
    fields = ["number", "scheduled_at", "state", "tries", "next_try_at", "snapshot", "reason", "finished_at"]
    readonly_fields = fields
    ordering = ["-number"]
    extra = 0
    max_num = 0
    show_change_link = True

    def get_queryset(self, request: HttpRequest) -> Any:
        return super().get_queryset(request).select_related("snapshot", "vm", "volume")


@admin.register(BackupSchedule)
class BackupScheduleAdmin(ReadOnly, SupportAdmin):
    list_display = [
        "source",
        "customer",
        "project",
        "origin",
        "interval",
        "at",
        "retention_count",
        "lock_days",
        "uses_recycle_bin",
        "next_run_at",
        "paused_at",
        "deleted_at",
    ]
    list_filter = ["origin", "interval", ("paused_at", admin.EmptyFieldListFilter)]
    list_select_related = ["project", "vm__project__customer", "volume__project__customer"]
    search_fields = ["vm__name", "volume__name"]
    uuid_fields = ("pk", "vm_id", "volume_id", "project_id", "project__customer_id")
    customer_fields = ("project__customer", "vm__project__customer")
    user_fields = ("created_by",)
    exclude = ["draft"]
    inlines = [BackupRunInline]

    @admin.display(description=_("customer"))
    def customer(self, schedule: BackupSchedule) -> str:
        return str(schedule.customer)


@admin.register(BackupRun)
class BackupRunAdmin(ReadOnly, SupportAdmin):
    list_display = ["source", "scheduled_at", "state", "tries", "next_try_at", "snapshot", "reason", "finished_at"]
    list_filter = ["state", "schedule__origin"]
    list_select_related = ["vm", "volume", "snapshot"]
    search_fields = ["vm__name", "volume__name", "reason"]
    uuid_fields = ("pk", "vm_id", "volume_id", "schedule_id", "snapshot_id")
    customer_fields = ("vm__project__customer", "volume__project__customer")
    user_fields = ("requested_by",)
