"""Restore drills and their plans for the support desk, read-only."""

from django.contrib import admin
from django.db.models import QuerySet
from django.http import HttpRequest
from django.utils.html import format_html_join
from django.utils.safestring import SafeString
from django.utils.translation import gettext_lazy as _

from cng_portal.common.admin import ReadOnly, SupportAdmin

from ..models import Drill, DrillCheck, DrilledDisk, DrillPlan


class DrilledDiskInline(ReadOnly, admin.TabularInline):
    model = DrilledDisk
    fields = ["disk", "removed_at", "checks_found"]
    readonly_fields = fields
    extra = 0

    def get_queryset(self, request: HttpRequest) -> QuerySet[DrilledDisk]:
        return super().get_queryset(request).select_related("disk").prefetch_related("checks")

    @admin.display(description=_("checks"))
    def checks_found(self, drilled: DrilledDisk) -> SafeString:
        return format_html_join("", "<p>{}: {}. {}</p>", map(describe, drilled.checks.all()))


def describe(check: DrillCheck) -> tuple[str, str, str]:
    name = f"{check.get_kind_display()} ({check.part})" if check.part else check.get_kind_display()
    return name, check.get_outcome_display(), check.detail


@admin.register(Drill)
class DrillAdmin(ReadOnly, SupportAdmin):
    list_display = ["snapshot", "result", "requested_by", "created_at", "started_at", "finished_at", "reason"]
    list_filter = ["result"]
    list_select_related = ["snapshot", "requested_by"]
    search_fields = ["snapshot__name", "reason"]
    uuid_fields = ("pk", "snapshot_id", "operation_id")
    customer_fields = ("snapshot__customer",)
    user_fields = ("requested_by",)
    inlines = [DrilledDiskInline]


@admin.register(DrillPlan)
class DrillPlanAdmin(ReadOnly, SupportAdmin):
    list_display = ["target", "interval", "random_days", "next_at"]
    list_filter = ["interval"]
    list_select_related = ["volume", "vm", "schedule__vm", "schedule__volume"]
    search_fields = ["volume__name", "vm__name"]
    uuid_fields = ("pk", "volume_id", "vm_id", "schedule_id")
    customer_fields = ("volume__project__customer", "vm__project__customer", "schedule__project__customer")
