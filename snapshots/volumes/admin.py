"""Volumes in Django admin, with their charges. The inventory app registers them, and knows nothing of billing."""

from typing import Any

from django.contrib import admin
from django.db import transaction
from django.http import HttpRequest
from django.utils import timezone

from cng_portal.accounts.services import lock_customer
from cng_portal.inventory.admin import VolumeAdmin
from cng_portal.inventory.models import Volume

from .charges import settle_charges


class ChargedVolumeAdmin(VolumeAdmin):
    def save_model(self, request: HttpRequest, obj: Volume, form: Any, change: bool) -> None:
        """Rename the usage with the volume, end its charge if it is deleted, resume it if the deletion is undone."""
        with transaction.atomic():
            lock_customer(obj.project.customer_id)
            super().save_model(request, obj, form, change)
            settle_charges(Volume.objects.filter(pk=obj.pk), at=timezone.now())


admin.site.unregister(Volume)
admin.site.register(Volume, ChargedVolumeAdmin)
