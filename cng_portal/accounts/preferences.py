"""How the person who reads wants to read: language, time zone and dates, set for the time of a request or of a notice, and
read by the filters of templatetags/portal.py."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar

from django.utils import timezone, translation

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
    """Language, zone and dates are those of the person; without a choice of language the active one stays."""
    token = _format.set(DateFormat(user.date_format) if user else DateFormat.WORDS)
    with ExitStack() as stack:
        stack.callback(_format.reset, token)
        stack.enter_context(timezone.override(user.zone if user else None))
        if user and user.language:
            stack.enter_context(translation.override(user.language))
        yield
