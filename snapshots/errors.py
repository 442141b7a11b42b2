"""Why an action was refused. The message is for the customer: what happened, what it means, what to do."""

from datetime import datetime
from math import ceil

from billing.pricing.prices import Quote


class ActionRefused(Exception):
    """Nothing was written. `field` is the form field that the message belongs to, if the form has it."""

    field = ""


class NameTaken(ActionRefused):
    """The name is taken or invalid. `suggestion` is a free one, or empty."""

    field = "name"

    def __init__(self, message: str, suggestion: str) -> None:
        super().__init__(message)
        self.suggestion = suggestion


class QuotaExceeded(ActionRefused):
    """A quota of the account, the project or the cloud project is used up."""


class RateLimited(ActionRefused):
    """The account has made too many such requests within the last hour. `retry_at` is when the next one is allowed."""

    def __init__(self, message: str, retry_at: datetime | None = None) -> None:
        super().__init__(message)
        self.retry_at = retry_at

    def retry_after(self, now: datetime) -> int:
        """Return the seconds until then, at least one, or a minute if it isn't known: the Retry-After header."""
        return max(1, ceil((self.retry_at - now).total_seconds())) if self.retry_at else 60


class OutOfSpace(ActionRefused):
    """The location's storage lacks space, or doesn't say how much it has."""


class NotSold(ActionRefused):
    """The location has no price for it in the customer's currency."""


class InsufficientCredit(ActionRefused):
    """The prepaid credits don't cover the first hour."""


class PriceChanged(ActionRefused):
    """The price isn't the one that was displayed. `quote` is the current one."""

    def __init__(self, message: str, quote: Quote) -> None:
        super().__init__(message)
        self.quote = quote


class LastRestorePoint(ActionRefused):
    """The snapshot is the last restore point of a disk, and the user hasn't confirmed that."""

    field = "is_last"


class SourceUnavailable(ActionRefused):
    """The volume, machine or location is gone or can't be used now."""


class InvalidState(ActionRefused):
    """The object's state doesn't allow the action."""


class WrongConfirmation(ActionRefused):
    """The typed name isn't the expected one."""

    field = "confirmation"


class DamagedSnapshot(ActionRefused):
    """The snapshot is damaged, and its name wasn't typed to use it anyway."""

    field = "override"


class WrongOverride(ActionRefused):
    """The name typed to use a snapshot without verifying it isn't the snapshot's."""

    field = "override"
