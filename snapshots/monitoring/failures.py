"""Recent failures for the support desk, grouped by reason, with advice."""

from dataclasses import dataclass
from datetime import datetime, timedelta

from django.utils.translation import gettext_lazy as _

from ..models import Operation
from ..storage.contract import advice_for

FAILURE_WINDOW = timedelta(days=7)
MAX_FAILURES = 100

# The state that a failure of each kind leaves behind. Advice on the cause comes from the driver's errors.
ADVICE = {
    Operation.Kind.CAPTURE: _(
        "Nothing was stored and nothing is charged. The customer sees the reason on the snapshot's page and can try again "
        "there once the cause is fixed."
    ),
    Operation.Kind.RESTORE: _(
        "A volume still has its old data. On an instance, disks before the failing one may already be overwritten: "
        "the safety snapshot holds all of them as they were, and “Undo” on the snapshot's page restores them. Contact the "
        "customer before the instance is started."
    ),
    Operation.Kind.NEW_VOLUME: _(
        "No volume was created and the snapshot is unchanged. Fix the cause, such as a quota or full storage; the "
        "customer can then try again on the snapshot's page."
    ),
    Operation.Kind.VERIFY: _(
        "If the reason mentions damage: ask the customer to take a new snapshot now, check the storage's disks, and keep "
        "the damaged snapshot until the new one is verified. Otherwise the data couldn't be read: verify again on the "
        "snapshot's page once the storage responds."
    ),
    Operation.Kind.SCRUB: _(
        "If the reason mentions damage: the customer was notified and is no longer charged for the snapshot; check the "
        "storage's disks. Otherwise the data couldn't be read; it is retried tomorrow."
    ),
    Operation.Kind.CATALOGUE: _(
        "The snapshot itself is fine, but its files are missing from histories and comparisons. It is retried tomorrow."
    ),
    Operation.Kind.DRILL: _(
        "If a check failed, the customer was notified, and the drill's page says which. Otherwise the drill found nothing "
        "out, the snapshot is unchanged, and its temporary volume is removed by the scheduler."
    ),
    Operation.Kind.DELETE: _(
        "Billing has ended but the data is still there. Fix the cause, then choose “Try again” on the snapshot's page as "
        "a member of the project, or ask the customer to."
    ),
    Operation.Kind.CLEAN_UP: _(
        "The remains of a failed snapshot couldn't be deleted from storage; nothing is charged for them. Fix the cause, "
        "then run manage.py fsck."
    ),
    Operation.Kind.CREATE_VOLUME: _(
        "No volume was created and nothing is charged. Fix the cause, such as a quota or full storage; the customer can "
        "then try again on the volume's page."
    ),
    Operation.Kind.EXTEND_VOLUME: _(
        "The volume keeps its size and its price. Fix the cause; the customer can then grow it again on its "
        "page. manage.py fsck reports whether its disk grew anyway."
    ),
    Operation.Kind.DELETE_VOLUME: _(
        "Billing has ended but the disk is still there. Fix the cause, then choose “Try again” on the volume's page as a "
        "member of the project, or ask the customer to."
    ),
}


@dataclass(frozen=True)
class FailureGroup:
    """Failures of one kind for one reason; `operations` are the newest five of `count`."""

    kind: str
    reason: str
    fix: str  # of the cause
    advice: str  # on the state left behind
    count: int
    operations: list[Operation]


def group_failures(*, now: datetime) -> list[FailureGroup]:
    """Return the newest failures, grouped by kind and reason. One query."""
    failed = Operation.objects.filter(state=Operation.State.FAILED, finished_at__gt=now - FAILURE_WINDOW)
    groups: dict[tuple[str, str, str], list[Operation]] = {}
    failed = failed.select_related("snapshot__customer", "volume__project__customer")
    for operation in failed.order_by("-finished_at")[:MAX_FAILURES]:
        groups.setdefault((operation.kind, operation.error, operation.cause), []).append(operation)
    return [
        FailureGroup(
            kind=operations[0].get_kind_display(),
            reason=reason,
            fix=str(advice_for(cause)),
            advice=str(ADVICE[Operation.Kind(kind)]),
            count=len(operations),
            operations=operations[:5],
        )
        for (kind, reason, cause), operations in groups.items()
    ]
