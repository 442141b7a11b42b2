from typing import Any

from django.contrib import admin
from django.db import models
from django.http import HttpRequest, HttpResponseRedirect
from django.urls import reverse

from cng_portal.common.admin import LockedForm

from .models import SupportContact


@admin.register(SupportContact)
class SupportContactAdmin(LockedForm, admin.ModelAdmin):
    """One form instead of a list: there is a single row."""

    formfield_overrides = {models.URLField: {"assume_scheme": "https"}}

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False  # An empty form says the same.

    def changelist_view(self, request: HttpRequest, extra_context: Any = None) -> Any:
        contact = SupportContact.objects.first()
        if contact is None and self.has_add_permission(request):
            return HttpResponseRedirect(reverse("admin:support_supportcontact_add"))
        if contact and self.has_view_permission(request, contact):
            return HttpResponseRedirect(reverse("admin:support_supportcontact_change", args=[contact.pk]))
        return super().changelist_view(request, extra_context)
