"""The actions on snapshots and volumes that another owner approves. See `cng_portal.accounts.approvals`."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from django.db.models import QuerySet
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from cng_portal.accounts import approvals
from cng_portal.accounts.models import Approval
from cng_portal.inventory.models import Volume

from . import locks, recycle_bin
from .errors import ActionRefused
from .models import Snapshot, SnapshotLock


def get_target(rows: QuerySet[Any], approval: Approval) -> Any:
    target = rows.filter(pk=approval.target_id).first()
    if target is None:
        raise approvals.ActionRefused(_("It no longer exists."))
    return target


@contextmanager
def translated_refusals() -> Iterator[None]:
    try:
        yield
    except ActionRefused as refusal:
        raise approvals.ActionRefused(str(refusal)) from refusal


def erase(approval: Approval, *, model: type[recycle_bin.Binned]) -> None:
    binned = get_target(model.objects.select_related("project"), approval)
    with translated_refusals():
        recycle_bin.erase(binned=binned, user=approval.requested_by, confirmation=binned.name, approval=approval)


def lift_lock(approval: Approval) -> None:
    lock = get_target(SnapshotLock.objects.select_related("snapshot"), approval)
    with translated_refusals():
        locks.lift_lock(lock=lock, user=approval.requested_by, reason=approval.reason, approval=approval)


ERASE = gettext_lazy("Delete “%(target)s” from the recycle bin for good")
approvals.register("erase_snapshot", ERASE, partial(erase, model=Snapshot))
approvals.register("erase_volume", ERASE, partial(erase, model=Volume))
approvals.register("lift_lock", gettext_lazy("Lift the lock of “%(target)s”"), lift_lock)
