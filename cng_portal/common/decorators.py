"""Marks on views that the middleware of accounts reads. Write them above other decorators."""

from collections.abc import Callable
from typing import Any, TypeVar

View = TypeVar("View", bound=Callable[..., Any])


def polled(view: View) -> View:
    """Open pages request this view by themselves, so it doesn't keep a session alive."""
    view.is_polled = True  # type: ignore[attr-defined]
    return view


def factor_not_required(view: View) -> View:
    """A user who has yet to add a required second factor can open this view: the page that adds one, and its frame."""
    view.is_factor_required = False  # type: ignore[attr-defined]
    return view
