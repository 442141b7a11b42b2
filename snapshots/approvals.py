"""What another owner approves of snapshots and volumes, as `cng_portal.accounts.approvals` says."""

from collections.abc import Callable
from typing import Any

from django.db import models
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from cng_portal.accounts import approvals
from cng_portal.accounts.models import Approval
from cng_portal.inventory.models import Volume

from . import locks, recycle_bin
from .errors import ActionRefused
from .models import Snapshot, SnapshotLock


def register(
    action: str, sentence: Any, model: type[models.Model], perform: Callable[[Any, Approval], object], *related: str
) -> None:
    def perform_approved(approval: Approval) -> None:
        target = model._default_manager.select_related(*related).filter(pk=approval.target_id).first()
        if target is None:
            raise approvals.ActionRefused(_("It no longer exists."))
        try:
            perform(target, approval)
        except ActionRefused as refusal:
            raise approvals.ActionRefused(str(refusal)) from refusal

    approvals.register(action, sentence, perform_approved)


def erase(binned: recycle_bin.Binned, approval: Approval) -> None:
    recycle_bin.erase(binned=binned, user=approval.requested_by, confirmation=binned.name, approval=approval)


def lift(lock: SnapshotLock, approval: Approval) -> None:
    locks.lift_lock(lock=lock, user=approval.requested_by, reason=approval.reason, approval=approval)


ERASE = gettext_lazy("Delete “%(target)s” from the recycle bin for good")
register("erase_snapshot", ERASE, Snapshot, erase, "project")
register("erase_volume", ERASE, Volume, erase, "project")
register("lift_lock", gettext_lazy("Lift the lock of “%(target)s”"), SnapshotLock, lift, "snapshot")
