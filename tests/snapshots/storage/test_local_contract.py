"""The contract suite for the local driver, where blocks are copied and where they are shared."""

from pathlib import Path

import pytest

from tests.snapshots.storage.contract import DriverContract
from tests.snapshots.storage.stores import LocalStore


class TestLocalDriver(DriverContract):
    @pytest.fixture
    def store(self, default_root: Path) -> LocalStore:
        return LocalStore(default_root)


class TestLocalDriverThatClones(DriverContract):
    @pytest.fixture
    def store(self, cloning_root: Path) -> LocalStore:
        store = LocalStore(cloning_root)
        assert store.driver.clones
        return store
