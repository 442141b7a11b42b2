"""Whatever Django admin logs is recorded here too, with the values, so that no new ModelAdmin can be forgotten."""

from typing import Any

from django.contrib.admin.models import ADDITION, CHANGE, DELETION, LogEntry
from django.core.exceptions import ObjectDoesNotExist
from django.db.models.signals import post_save
from django.dispatch import receiver
from django.utils.translation import gettext_lazy as _

from cng_portal.common.origin import get_origin

from .registry import register
from .services import record

ADMIN_ACTIONS = {ADDITION: "admin.add", CHANGE: "admin.change", DELETION: "admin.delete"}

register(
    {
        "admin.add": _("Added by an administrator"),
        "admin.change": _("Changed by an administrator"),
        "admin.delete": _("Deleted by an administrator"),
        "activity.delete_old": _("Old entries of the activity log deleted"),
    }
)


@receiver(post_save, sender=LogEntry)
def record_admin_action(sender: Any, instance: LogEntry, created: bool, **kwargs: Any) -> None:
    try:
        target = instance.get_edited_object()
    except ObjectDoesNotExist:
        target = None
    origin = get_origin()
    after = origin.after or {"message": instance.get_change_message()}
    action = ADMIN_ACTIONS[instance.action_flag]
    record(action=action, actor=instance.user, target=target, before=origin.before, after=after)
