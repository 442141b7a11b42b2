"""How the person who reads wants dates: set for the time of a request, read by the filters of templatetags/portal.py."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from .models import DateFormat

_pattern: ContextVar[str] = ContextVar("date_pattern", default=DateFormat.WORDS.value)


def date_pattern() -> str:
    """A CLDR pattern, such as `d MMM y`."""
    return _pattern.get()


@contextmanager
def dates_as(pattern: str | None) -> Iterator[None]:
    token = _pattern.set(pattern or DateFormat.WORDS.value)
    try:
        yield
    finally:
        _pattern.reset(token)
