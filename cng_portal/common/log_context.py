"""Fields that every log line carries until the end of a block: the IDs of a request and of an operation."""

from contextlib import AbstractContextManager

import structlog


def get_request_id() -> str:
    """The ID of the current request, or of the request behind the current operation; "" for none."""
    return structlog.contextvars.get_contextvars().get("request_id", "")


def bind_fields(**fields: str) -> AbstractContextManager[None]:
    """Use as `with bind_fields(operation_id=…):`. Empty fields are left out."""
    return structlog.contextvars.bound_contextvars(**{name: value for name, value in fields.items() if value})
