from pathlib import Path

import pytest

from tests.snapshots.storage.stores import LocalStore


@pytest.fixture(params=["copying", "cloning"])
def store(request: pytest.FixtureRequest) -> LocalStore:
    return LocalStore(request.getfixturevalue("default_root" if request.param == "copying" else "cloning_root"))


@pytest.fixture
def copying(default_root: Path) -> LocalStore:
    return LocalStore(default_root)
