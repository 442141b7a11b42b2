"""The contract suite for the Cinder driver, on a real Cinder."""

from tests.snapshots.storage.contract import DriverContract


class TestCinderDriver(DriverContract):
    """With the `store` of this folder's conftest."""
