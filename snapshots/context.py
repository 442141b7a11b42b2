from django.http import HttpRequest
from django.urls import reverse
from django.utils.functional import SimpleLazyObject
from django.utils.translation import gettext as _

from billing.access import billed_customer
from cng_portal.accounts.models import User

from .views.bell import in_progress


def frame(request: HttpRequest) -> dict[str, object]:
    """What the frame around every page shows: the left-hand menu, the Create menu, and in the bell what is in progress."""
    user = getattr(request, "user", None)  # a request for another host is refused before anybody asks who it is from
    if user is None or not user.is_authenticated:
        return {}
    return {
        "menu": SimpleLazyObject(lambda: menu(request)),
        "create_menu": SimpleLazyObject(lambda: create_menu(user)),
        "in_progress": SimpleLazyObject(lambda: in_progress(user)),
    }


def menu(request: HttpRequest) -> list[dict[str, object]]:
    path = getattr(request, "section", request.path)  # a view may know better where its page belongs

    def item(label: str, name: str, icon: str, prefix: str | None = None) -> dict[str, object]:
        url = reverse(name)
        active = path == "/" if url == "/" else path.startswith(prefix or url)
        return {"label": label, "url": url, "icon": icon, "active": active}

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
        *([account] if billed_customer(request.user) else []),
        {"label": _("Support"), "items": [item(_("Help"), "help:index", "question-mark-circle")]},
    ]


def create_menu(user: User) -> list[dict[str, str]]:
    """Nothing for who may only look: each of these pages would refuse it."""
    if not user.changeable_project_ids:
        return []
    return [
        {"label": _("Volume snapshot"), "url": reverse("snapshots:new"), "icon": "circle-stack"},
        {"label": _("VM snapshot"), "url": reverse("snapshots:new_vm"), "icon": "server"},
        {"label": _("Backup"), "url": reverse("snapshots:new_backup"), "icon": "archive-box"},
    ]
