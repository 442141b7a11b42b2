"""Where the current request comes from."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Origin:
    """`before` and `after` are the values that a form of Django admin changes; SupportAdmin sets them."""

    address: str | None = None
    device: str = ""
    before: dict[str, Any] = field(default_factory=dict)
    after: dict[str, Any] = field(default_factory=dict)


_origin: ContextVar[Origin | None] = ContextVar("origin", default=None)


def get_origin() -> Origin:
    """An empty one outside of a request, as in a worker or a command."""
    return _origin.get() or Origin()


@contextmanager
def use_origin(origin: Origin) -> Iterator[None]:
    token = _origin.set(origin)
    try:
        yield
    finally:
        _origin.reset(token)
