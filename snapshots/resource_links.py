"""The pages of billed resources."""

from collections.abc import Collection
from uuid import UUID

from django.urls import reverse

from billing import links
from cng_portal.accounts.models import User
from cng_portal.inventory.models import VirtualMachine, Volume

from .models import Snapshot


@links.register
def resource_urls(user: User, resource_ids: Collection[UUID]) -> dict[UUID, str]:
    urls = {}
    pages = (("snapshot", Snapshot.objects), ("machine", VirtualMachine.objects), ("volume", Volume.objects))
    for name, owned in pages:
        for pk in owned.visible_to(user).filter(pk__in=resource_ids).values_list("pk", flat=True):
            urls[pk] = reverse(f"snapshots:{name}", args=[pk])
    return urls
