"""The reader's time zone and date format, set for a request or a notification and read by templatetags/portal.py."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from django.db import models
from django.utils import timezone
from django.utils.translation import gettext_lazy as _


class DateFormat(models.TextChoices):
    """The value is a CLDR pattern."""

    WORDS = "d MMM y", _("22 Nov 2026")
    ISO = "y-MM-dd", _("2026-11-22")
    DAY_FIRST = "dd/MM/y", _("22/11/2026")
    MONTH_FIRST = "MM/dd/y", _("11/22/2026")


_format: ContextVar[DateFormat] = ContextVar("date_format", default=DateFormat.WORDS)

WITHOUT_YEAR = {DateFormat.WORDS: "d MMM"}  # the other formats would be ambiguous
MONTHS = {
    DateFormat.WORDS: "MMMM y",
    DateFormat.ISO: "y-MM",
    DateFormat.DAY_FIRST: "MM/y",
    DateFormat.MONTH_FIRST: "MM/y",
}


def date_pattern(*, with_year: bool = True) -> str:
    """A CLDR pattern, such as `d MMM y`; numeric formats keep the year."""
    chosen = _format.get()
    return chosen.value if with_year else WITHOUT_YEAR.get(chosen, chosen.value)


def month_pattern() -> str:
    """A CLDR pattern of a month, such as `MMMM y`."""
    return MONTHS[_format.get()]


@contextmanager
def localized_for(user: Any) -> Iterator[None]:
    """Use the time zone and date format of the user, or the defaults if it is None."""
    token = _format.set(DateFormat(user.date_format) if user else DateFormat.WORDS)
    try:
        with timezone.override(user.zone if user else None):
            yield
    finally:
        _format.reset(token)
