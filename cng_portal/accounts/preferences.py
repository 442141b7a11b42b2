"""The reader's time zone and date format, set for the duration of a request or a notification and read by the filters of
templatetags/portal.py.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from django.utils import timezone

from .models import DateFormat, User

_format: ContextVar[DateFormat] = ContextVar("date_format", default=DateFormat.WORDS)

WITHOUT_YEAR = {DateFormat.WORDS: "d MMM"}  # in figures nobody could tell the day from the month
MONTHS = {
    DateFormat.WORDS: "MMMM y",
    DateFormat.ISO: "y-MM",
    DateFormat.DAY_FIRST: "MM/y",
    DateFormat.MONTH_FIRST: "MM/y",
}


def date_pattern(*, with_year: bool = True) -> str:
    """A CLDR pattern, such as `d MMM y`; the year stays where the person wants figures."""
    chosen = _format.get()
    return chosen.value if with_year else WITHOUT_YEAR.get(chosen, chosen.value)


def month_pattern() -> str:
    """A CLDR pattern of a month, such as `MMMM y`."""
    return MONTHS[_format.get()]


@contextmanager
def as_read_by(user: User | None) -> Iterator[None]:
    """Use the user's time zone and date format, or the defaults without a user."""
    token = _format.set(DateFormat(user.date_format) if user else DateFormat.WORDS)
    try:
        with timezone.override(user.zone if user else None):
            yield
    finally:
        _format.reset(token)
