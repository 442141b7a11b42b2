"""Links from usage to the pages of its resources. The apps that own these pages register them."""

from collections.abc import Callable, Collection
from uuid import UUID

from cng_portal.accounts.models import User

FindUrls = Callable[[User, Collection[UUID]], dict[UUID, str]]
finders: list[FindUrls] = []


def register(find_urls: FindUrls) -> FindUrls:
    """Add a function that returns {resource: URL of its page}, for those that the user may see."""
    finders.append(find_urls)
    return find_urls


def resource_urls(user: User, resource_ids: Collection[UUID]) -> dict[UUID, str]:
    return {pk: url for find_urls in finders for pk, url in find_urls(user, resource_ids).items()}
