"""The pages of what billing charges for."""

from collections.abc import Collection
from uuid import UUID

from django.urls import reverse

from billing import links
from cng_portal.accounts.models import User
from cng_portal.inventory.models import VirtualMachine

from .models import Snapshot


@links.register
def resource_urls(user: User, resource_ids: Collection[UUID]) -> dict[UUID, str]:
    urls = {}
    for name, owned in (("snapshot", Snapshot.objects), ("machine", VirtualMachine.objects)):
        for pk in owned.visible_to(user).filter(pk__in=resource_ids).values_list("pk", flat=True):
            urls[pk] = reverse(f"snapshots:{name}", args=[pk])
    return urls
