"""Read many rows or items, some at a time."""

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import TypeVar

from django.db.models import Model, QuerySet

BATCH_SIZE = 500
M = TypeVar("M", bound=Model)
T = TypeVar("T")


def iterate_by_pk(rows: QuerySet[M], size: int | None = None) -> Iterator[M]:
    """Yield the rows in the order of their keys, with a query for each batch.

    No cursor stays open in between: the caller may take long, and SQLite refuses a write after others have changed rows of a
    read that hasn't finished.
    """
    size = size or BATCH_SIZE
    batch = list(rows.order_by("pk")[:size])
    while batch:
        yield from batch
        batch = list(rows.filter(pk__gt=batch[-1].pk).order_by("pk")[:size])


def batched(items: Iterable[T], size: int | None = None) -> Iterator[list[T]]:
    """Yield the items in lists of `size`. Python has this from 3.12 on."""
    iterator = iter(items)
    while batch := list(islice(iterator, size or BATCH_SIZE)):
        yield batch
