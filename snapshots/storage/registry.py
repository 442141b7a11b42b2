"""Storage drivers by alias: `settings.STORAGE` defines them, and a location chooses one and may add options."""

import json
from datetime import datetime
from threading import Lock
from typing import Any, Protocol

from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.utils.module_loading import import_string

from .contract import Driver


class DriverLocation(Protocol):
    """The fields of `inventory.Location` that are used here."""

    code: str
    driver: str
    driver_options: dict[str, str]
    storage_seen_at: datetime | None


_drivers: dict[tuple[str, str, str, str], Driver] = {}
_lock = Lock()


def get_driver(location: DriverLocation) -> Driver:
    """Return the driver that serves a location, the same object each time within a process.

    Raises ImproperlyConfigured when the alias is unknown or its driver can't be set up.
    """
    alias = location.driver
    try:
        entry: dict[str, Any] = settings.STORAGE[alias]
        path: str = entry["driver"]
    except (KeyError, TypeError) as error:
        raise ImproperlyConfigured(
            f"Location {location.code} asks for the storage driver {alias!r}, which STORAGE does not define."
        ) from error
    options = {**entry.get("options", {}), **location.driver_options}
    key = (alias, path, location.code, json.dumps(options, sort_keys=True, default=str))
    with _lock:
        if key not in _drivers:
            try:
                _drivers[key] = import_string(path)(location=location.code, **options)
            except (ImportError, TypeError, ValueError) as error:
                raise ImproperlyConfigured(
                    f"The storage driver {alias!r} cannot serve location {location.code}: {error}"
                ) from error
        if location.storage_seen_at:
            _drivers[key].is_set_up = True
        return _drivers[key]
