from django.contrib import admin
from django.utils.translation import gettext_lazy as _

from cng_portal.common.admin import ReadOnly, SupportAdmin

from .models import Activity


@admin.register(Activity)
class ActivityAdmin(ReadOnly, SupportAdmin):
    list_display = ["at", "actor_label", "label", "target_kind", "target_name", "customer", "project", "address"]
    list_filter = ["action"]
    list_select_related = ["actor", "customer", "project"]
    search_fields = ["target_name", "actor_name", "=address"]
    uuid_fields = ("pk", "actor_id", "customer_id", "project_id", "target_id")
    user_fields = ("actor",)
    customer_fields = ("customer",)
    ordering = ["-at", "-id"]

    @admin.display(description=_("user"), ordering="actor_name")
    def actor_label(self, entry: Activity) -> str:
        return entry.actor_label

    @admin.display(description=_("action"), ordering="action")
    def label(self, entry: Activity) -> str:
        return entry.label
