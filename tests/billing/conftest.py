from collections.abc import Callable
from datetime import UTC, datetime
from types import SimpleNamespace
from uuid import uuid4

import pytest

from billing.models import ServiceKind, UsageSegment
from billing.pricing.packages import create_package
from billing.usage import close_segment, open_segment
from tests.factories import LocationFactory, ProjectFactory, UserFactory

KIND = ServiceKind.BS_SNAPSHOT


@pytest.fixture
def shop() -> SimpleNamespace:
    """A prepaid customer with an owner, and a location that sells BS snapshots at K 0.40 since 2026."""
    project = ProjectFactory(customer__number=39, customer__name="Shwe", name="Default")
    owner = UserFactory(email="owner@example.com", member_of=project)
    location = LocationFactory(code="1CNG-YGN-AZ01")
    package = create_package(
        location=location, kind=KIND, rate_micro=400_000, starts_at=datetime(2026, 1, 1, tzinfo=UTC)
    )
    return SimpleNamespace(
        customer=project.customer, project=project, owner=owner, location=location, package=package, kind=KIND
    )


@pytest.fixture
def use(shop: SimpleNamespace) -> Callable[..., UsageSegment]:
    """use(start, end) charges the shop's customer for 50 GB and returns the stored segment."""

    def use(start: datetime, end: datetime | None = None, **fields: object) -> UsageSegment:
        values = {
            "resource_id": uuid4(),
            "kind": KIND,
            "name": "disk-1",
            "project": shop.project,
            "location": shop.location,
            "size_gb": 50,
        }
        segment = open_segment(**(values | fields), at=start)
        if end:
            close_segment(resource_id=segment.resource_id, kind=segment.kind, at=end)
        segment.refresh_from_db()
        return segment

    return use
