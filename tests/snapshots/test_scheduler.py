"""The scheduler's duties continue after one object fails, and name it."""

from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from django.utils import timezone

from cng_portal.mail.models import OutgoingMail
from snapshots.cloudsync.sync import sync_everywhere
from snapshots.management.commands.scheduler import tidy_up
from tests.factories import LocationFactory, OutgoingMailFactory

pytestmark = pytest.mark.django_db


def test_a_failing_duty_or_location_does_not_stop_the_clean_up(storage_root: Path, settings: Any) -> None:
    settings.CACHES = settings.CACHES | {"default": settings.CACHES["default"] | {"LOCATION": "no_such_table"}}
    LocationFactory(code="1CNG-AAA-AZ01", driver="none")
    LocationFactory(code="1CNG-YGN-AZ01")
    leftover = storage_root / "1CNG-YGN-AZ01" / "volumes" / f".{uuid4()}.new"
    leftover.parent.mkdir(parents=True)
    leftover.write_bytes(b"half a volume")
    OutgoingMailFactory(created_at=timezone.now() - timedelta(days=91))
    with pytest.raises(ExceptionGroup) as group:
        tidy_up()
    assert not OutgoingMail.objects.exists()
    assert not leftover.exists()
    attempts, locations = group.value.exceptions
    assert attempts.__notes__ == ["Failed for: delete_attempts"]
    assert isinstance(locations, ExceptionGroup)
    assert locations.exceptions[0].__notes__ == ["Failed for: 1CNG-AAA-AZ01"]


def test_a_location_without_a_driver_stops_no_others_sync() -> None:
    LocationFactory(code="1CNG-AAA-AZ01", driver="none")
    LocationFactory(code="1CNG-MDY-AZ01")
    LocationFactory(code="1CNG-YGN-AZ01", driver="none")
    with pytest.raises(ExceptionGroup) as group:
        sync_everywhere()
    notes = [error.__notes__ for error in group.value.exceptions]
    assert notes == [["Failed for: 1CNG-AAA-AZ01"], ["Failed for: 1CNG-YGN-AZ01"]]
