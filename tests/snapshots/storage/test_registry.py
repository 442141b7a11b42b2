"""Drivers by alias, with options from the settings and the location."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from django.core.exceptions import ImproperlyConfigured
from pytest_django import Settings

from cng_portal.inventory.models import Location
from snapshots.storage.local import LocalDriver
from snapshots.storage.registry import get_driver


def test_a_location_gets_one_driver_per_process(storage_root: Path) -> None:
    location = Location(code="1CNG-YGN-AZ01")
    with ThreadPoolExecutor(8) as pool:
        drivers = set(pool.map(lambda _each: get_driver(location), range(64)))
    [driver] = drivers
    assert isinstance(driver, LocalDriver)
    assert driver.folder.path == storage_root / "1CNG-YGN-AZ01"
    assert get_driver(Location(code="1CNG-MDY-AZ01")) is not driver


def test_the_options_of_a_location_come_on_top(storage_root: Path, tmp_path: Path) -> None:
    driver = get_driver(Location(code="A", driver_options={"root": str(tmp_path / "faster")}))
    assert isinstance(driver, LocalDriver)
    assert driver.folder.path == tmp_path / "faster" / "A"


def test_an_unknown_alias_is_named() -> None:
    with pytest.raises(ImproperlyConfigured, match="A asks for the storage driver 'ceph'"):
        get_driver(Location(code="A", driver="ceph"))


@pytest.mark.parametrize(
    "entry",
    [
        {"driver": "snapshots.storage.nowhere.Driver"},
        {"driver": "snapshots.storage.local.LocalDriver", "options": {"rot": "/tmp"}},
        {"driver": "snapshots.storage.local.LocalDriver"},
    ],
)
def test_a_driver_that_cannot_be_set_up_is_named(settings: Settings, entry: dict) -> None:
    settings.STORAGE = {"local": entry}
    with pytest.raises(ImproperlyConfigured, match="'local' cannot serve location A"):
        get_driver(Location(code="A"))
