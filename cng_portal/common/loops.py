from collections.abc import Callable, Iterable
from typing import TypeVar

Item = TypeVar("Item")


def for_each(items: Iterable[Item], function: Callable[[Item], object]) -> None:
    """Call `function` with each item, even after one has failed.

    Raises an ExceptionGroup at the end; each of its errors has a note that names the item.
    """
    errors = []
    for item in items:
        try:
            function(item)
        except Exception as error:
            error.add_note(f"Failed for: {getattr(item, '__name__', item)}")
            errors.append(error)
    if errors:
        raise ExceptionGroup("Some items failed; the others were handled", errors)
