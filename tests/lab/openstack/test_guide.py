"""The customer guide on a real Cinder, with the data through librbd."""

import pytest

from cng_portal.accounts.models import Membership
from cng_portal.inventory.models import Volume
from tests.browser.guide import LOCATION, NAME, SIZE_GB, GuideContract
from tests.factories import LocationFactory, VolumeFactory
from tests.lab.openstack.stores import CinderStore
from tests.snapshots.disks import sell_everywhere
from tests.snapshots.storage.contract import new_volume

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def live() -> bool:
    return True


@pytest.fixture
def volume(store: CinderStore, cinder_storage: None, member: Membership) -> Volume:
    ref = new_volume(store, size_gb=SIZE_GB)
    location = LocationFactory(code=LOCATION, driver="cinder")
    sell_everywhere()
    return VolumeFactory(
        pk=ref.uuid,
        project=member.project,
        location=location,
        backend_ref=ref.backend_ref,
        name=NAME,
        size_gb=SIZE_GB,
    )


class TestGuide(GuideContract):
    patience = 120
