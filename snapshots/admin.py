"""Snapshots and operations for the support desk, read-only. Admin of backups is in backups/admin.py."""

from typing import Any

from django.contrib import admin
from django.core.exceptions import PermissionDenied
from django.http import HttpRequest, HttpResponse, HttpResponseNotAllowed
from django.template.response import TemplateResponse
from django.urls import path
from django.utils import timezone
from django.utils.html import format_html
from django.utils.safestring import SafeString
from django.utils.translation import gettext_lazy as _

from cng_portal.common.admin import ReadOnly, SupportAdmin
from cng_portal.inventory.models import Location
from cng_portal.monitoring.heartbeats import SILENT_AFTER
from cng_portal.monitoring.models import Process
from cng_portal.monitoring.status import load_cluster_status

from . import lock_admin  # noqa: F401
from .backups import admin as backups_admin  # noqa: F401  # Django looks for admin classes in this module only.
from .backups import automatic_admin  # noqa: F401
from .drills import admin as drill_admin  # noqa: F401
from .models import DiskImage, Operation, Snapshot
from .monitoring.failures import FAILURE_WINDOW, group_failures
from .monitoring.status import load_operation_status
from .volumes import admin as volume_admin  # noqa: F401


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
    user_fields = ("requested_by",)
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
        "new_size_gb",
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
    customer_fields = ("snapshot__customer", "volume__project__customer")
    user_fields = ("requested_by",)
    change_list_template = "snapshots/admin/operations.html"

    def get_urls(self) -> list[Any]:
        overview = path("overview/", self.admin_site.admin_view(self.overview), name="snapshots_operation_overview")
        return [overview, *super().get_urls()]

    def overview(self, request: HttpRequest) -> HttpResponse:
        """Show the state of operations, storage and processes, and what to do about failures."""
        if not self.has_view_permission(request):
            raise PermissionDenied
        if request.method == "POST":
            return HttpResponseNotAllowed(["GET"])
        now = timezone.now()
        cluster, status = load_cluster_status(now=now), load_operation_status(now=now)
        context = {
            **self.admin_site.each_context(request),
            "title": _("Operations overview"),
            "opts": self.opts,
            "cluster": cluster,
            "status": status,
            "warnings": cluster.warnings() + status.warnings(),
            "failures": group_failures(now=now),
            "failure_days": FAILURE_WINDOW.days,
            "locations": Location.objects.select_related("storage_check"),
            "processes": Process.objects.order_by("kind", "host", "started_at"),
            "silent_before": now - SILENT_AFTER,
        }
        return TemplateResponse(request, "snapshots/admin/overview.html", context)
