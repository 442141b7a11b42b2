from dataclasses import dataclass
from functools import cache

from django.http import HttpRequest
from django.urls import reverse
from django.utils.functional import SimpleLazyObject
from django.utils.translation import gettext as _

from billing.access import billed_customer
from cng_portal import full_disk

from .views.bell import in_progress


def frame(request: HttpRequest) -> dict[str, object]:
    """What the frame around every page shows: the left-hand menu, whether one can create anything (who may only look is
    refused), and in the bell what is in progress.
    """
    user = getattr(request, "user", None)  # a request for another host is refused before anybody asks who it is from
    if user is None or not user.is_authenticated:
        return {}
    path = getattr(request, "section", request.path)  # a view may know better where its page belongs
    return {
        "menu": Menu(section=section_of(path), has_bills=billed_customer(user) is not None),
        "can_create": bool(user.changeable_project_ids),
        "disk_is_full": full_disk.is_full,
        "in_progress": SimpleLazyObject(lambda: in_progress(user)),
    }


@cache
def sections() -> list[str]:
    """The addresses below which the pages are that an item of the menu stands for."""
    own = [reverse(name) for name in ("snapshots:machines", "snapshots:volumes", "help:index")]
    return [*own, "/snapshots/", "/backups/", "/billing/"]


def section_of(path: str) -> str:
    return path if path == "/" else next((one for one in sections() if path.startswith(one)), "")


@dataclass(frozen=True)
class Menu:
    section: str
    has_bills: bool

    def groups(self) -> list[dict[str, object]]:
        def item(label: str, name: str, icon: str, section: str = "") -> dict[str, object]:
            url = reverse(name)
            return {"label": label, "url": url, "icon": icon, "active": self.section == (section or url)}

        account: dict[str, object] = {
            "label": _("Account"),
            "items": [item(_("Billing"), "billing:summary", "banknotes", "/billing/")],
        }
        return [
            {"label": "", "items": [item(_("Dashboard"), "dashboard", "home")]},
            {
                "label": _("Virtual machines"),
                "items": [
                    item(_("Instances"), "snapshots:machines", "server"),
                    item(_("Snapshots"), "snapshots:volume_snapshots", "camera", "/snapshots/"),
                    item(_("Backups"), "snapshots:backups", "archive-box", "/backups/"),
                ],
            },
            {"label": _("Storage"), "items": [item(_("Volumes"), "snapshots:volumes", "circle-stack")]},
            *([account] if self.has_bills else []),
            {"label": _("Support"), "items": [item(_("Help"), "help:index", "question-mark-circle")]},
        ]
