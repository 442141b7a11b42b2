"""What the views of this app share."""

from typing import Any

from django.http import HttpRequest
from django.urls import reverse
from django.utils.translation import gettext as _


def tabs(request: HttpRequest) -> list[dict[str, Any]]:
    """The pages of the profile; who belongs to no customer has no account to speak of."""
    labels = {"accounts:profile": (_("Details"), "user-circle"), "accounts:security": (_("Security"), "lock-closed")}
    labels |= {"accounts:sessions": (_("Sessions"), "computer-desktop"), "accounts:sign_ins": (_("Sign-ins"), "clock")}
    if request.user.roles:
        labels["snapshots:limits"] = (_("Limits"), "scale")
        labels["accounts:people"] = (_("People"), "users")
    labels["accounts:activity"] = (_("Activity"), "clipboard-document-list")
    here = request.resolver_match.view_name
    return [
        {"label": label, "url": reverse(name), "icon": icon, "active": name == here}
        for name, (label, icon) in labels.items()
    ]
