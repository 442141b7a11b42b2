"""The properties of volumes and snapshots: texts by name, of the user's choice; the portal adds those under its prefix."""

from typing import Any

from django.core.exceptions import ValidationError
from django.db import transaction
from django.utils.translation import gettext as _

from billing.pricing.prices import Quote
from cng_portal.accounts.models import User
from cng_portal.accounts.services import lock_customer
from cng_portal.activity import services as activity
from cng_portal.common.money import to_decimal
from cng_portal.common.names import JOINERS, require_visible
from cng_portal.inventory.models import Volume

from .. import checks
from ..models import Snapshot

PREFIX = "1cng:"
MAX_PROPERTIES = 64
MAX_LENGTH = 255


def clean_metadata(metadata: Any, *, may_repeat: bool = False) -> dict[str, str]:
    """Return the properties, which are texts by name. Raises ValidationError.

    `may_repeat` drops those of the portal, which a client that replaces all sends back as it read them.
    """
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise ValidationError(_("Properties must be an object with texts."))
    cleaned = {}
    for name, value in metadata.items():
        if name.startswith(PREFIX):
            if may_repeat:
                continue
            raise ValidationError(_("Names that begin with “%(prefix)s” are the portal's.") % {"prefix": PREFIX})
        if not 0 < len(name) <= MAX_LENGTH or len(value) > MAX_LENGTH:
            raise ValidationError(_("A property has 1 to 255 characters, and its value at most 255."))
        cleaned[require_visible(name, allowed=JOINERS)] = require_visible(value, allowed=JOINERS)
    if len(cleaned) > MAX_PROPERTIES:
        raise ValidationError(_("At most %(limit)s properties.") % {"limit": MAX_PROPERTIES})
    return cleaned


def change_metadata(
    *,
    target: Volume | Snapshot,
    user: User,
    add: dict[str, str] | None = None,
    remove: str = "",
    replace: dict[str, str] | None = None,
) -> dict[str, str]:
    """Return the changed properties. Raises KeyError if there is nothing to remove, ValidationError, PermissionDenied."""
    with transaction.atomic():
        lock_customer(target.project.customer_id)
        target = type(target).objects.select_related("project").get(pk=target.pk)
        checks.require_change(User.objects.get(pk=user.pk), target.project_id)
        before = target.metadata or {}
        after = dict(before if replace is None else replace) | (add or {})
        if remove:
            del after[remove]
        if len(after) > MAX_PROPERTIES:
            raise ValidationError(_("At most %(limit)s properties.") % {"limit": MAX_PROPERTIES})
        if after != before:
            target.metadata = after
            target.save(update_fields=["metadata"])
            activity.record(
                action="labels.change",
                actor=user,
                target=target,
                before={"properties": before},
                after={"properties": after},
            )
    return after


def with_price(metadata: dict[str, str] | None, quote: Quote | None) -> dict[str, str]:
    """Return the properties with today's price, if it costs anything."""
    own = (
        {
            f"{PREFIX}hourly_price": f"{to_decimal(quote.hourly_micro).normalize():f}",
            f"{PREFIX}monthly_price": f"{to_decimal(quote.monthly_micro).normalize():f}",
            f"{PREFIX}currency": quote.currency,
        }
        if quote
        else {}
    )
    return (metadata or {}) | own
