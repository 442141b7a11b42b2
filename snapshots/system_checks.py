"""Django system checks of the storage engines."""

from collections.abc import Sequence
from inspect import signature

from django.apps import AppConfig
from django.conf import settings
from django.core.checks import Error, register
from django.utils.module_loading import import_string

from snapshots.storage.contract import Driver


@register
def check_storage_drivers(app_configs: Sequence[AppConfig] | None = None, **options: object) -> list[Error]:
    """Check that every engine of settings.STORAGE names a driver that can be imported."""
    errors = []
    for alias, engine in settings.STORAGE.items():
        try:
            driver = import_string(engine["driver"])
        except ImportError as error:
            errors.append(
                Error(f"STORAGE cannot be used: the driver of “{alias}” is not there ({error}).", id="storage.E001")
            )
            continue
        if not isinstance(driver, type) or not issubclass(driver, Driver):
            sentence = f"STORAGE cannot be used: “{engine['driver']}”, the driver of “{alias}”, is no storage driver."
            errors.append(Error(sentence, id="storage.E002"))
            continue
        try:
            signature(driver).bind_partial(location="", **engine["options"])  # a location may add what is missing
        except TypeError as error:
            errors.append(Error(f"STORAGE cannot be used: the options of “{alias}”: {error}.", id="storage.E003"))
    return errors
