"""Snapshots and the work on them, for the support desk: to look at. What is done to them goes through services.py."""

from typing import Any

from django.contrib import admin
from django.utils.html import format_html
from django.utils.safestring import SafeString
from django.utils.translation import gettext_lazy as _

from cng_portal.accounts.admin import ReadOnly, SupportAdmin

from .models import DiskImage, Operation, Snapshot


class DiskImageInline(ReadOnly, admin.TabularInline):
    model = DiskImage
    fields = ["volume_name", "size_gb", "allocated_bytes", "checksum", "captured_at", "verified_at", "damage"]
    readonly_fields = fields
    extra = 0
    show_change_link = True


class OperationInline(ReadOnly, admin.TabularInline):
    model = Operation
    fk_name = "snapshot"
    fields = ["kind", "state", "attempt", "requested_by", "created_at", "started_at", "finished_at", "error"]
    readonly_fields = fields
    extra = 0
    show_change_link = True

    def get_queryset(self, request: Any) -> Any:
        return super().get_queryset(request).select_related("requested_by")


@admin.register(Snapshot)
class SnapshotAdmin(ReadOnly, SupportAdmin):
    list_display = [
        "name",
        "kind",
        "state_badge",
        "size_gb",
        "volume",
        "vm",
        "project",
        "customer",
        "location",
        "created_at",
    ]
    list_filter = ["kind", "state", "location"]
    list_select_related = ["volume", "vm", "project", "customer", "location"]
    search_fields = ["name", "volume__name", "vm__name"]
    uuid_fields = ("pk", "volume_id", "vm_id", "project_id", "customer_id")
    customer_fields = ("customer",)
    person_fields = ("requested_by",)
    ordering = ["-created_at", "-id"]
    exclude = ["name_key", "draft"]
    inlines = [DiskImageInline, OperationInline]

    @admin.display(description=_("state"), ordering="state")
    def state_badge(self, snapshot: Snapshot) -> SafeString:
        return format_html('<span title="{}">{}</span>', snapshot.error, snapshot.get_state_display())


@admin.register(DiskImage)
class DiskImageAdmin(ReadOnly, SupportAdmin):
    list_display = ["volume_name", "snapshot", "size_gb", "allocated_bytes", "captured_at", "verified_at", "is_damaged"]
    list_filter = [("damage", admin.EmptyFieldListFilter)]
    list_select_related = ["snapshot"]
    search_fields = ["volume_name", "checksum", "snapshot__name"]
    uuid_fields = ("pk", "snapshot_id", "volume_id")
    customer_fields = ("snapshot__customer",)

    @admin.display(description=_("damaged"), boolean=True)
    def is_damaged(self, disk: DiskImage) -> bool:
        return bool(disk.damage)


@admin.register(Operation)
class OperationAdmin(ReadOnly, SupportAdmin):
    list_display = [
        "kind",
        "state",
        "snapshot",
        "volume",
        "attempt",
        "requested_by",
        "created_at",
        "finished_at",
        "error",
    ]
    list_filter = ["kind", "state"]
    list_select_related = ["snapshot", "volume", "requested_by"]
    search_fields = ["snapshot__name", "volume__name", "error"]
    uuid_fields = ("pk", "snapshot_id", "volume_id", "safety_snapshot_id")
    customer_fields = ("snapshot__customer",)
    person_fields = ("requested_by",)
