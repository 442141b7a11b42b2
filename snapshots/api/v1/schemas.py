"""The requests and responses of /api/v1. The reference is made from these."""

from datetime import date, datetime
from typing import Annotated, Any
from uuid import UUID

from ninja import Field, Schema
from pydantic import BeforeValidator, ConfigDict, StrictInt, WithJsonSchema, create_model

from billing.models import MAX_SIZE_GB, PACKAGE_KINDS, ServiceKind
from cng_portal.inventory import models as inventory

from ... import models
from ...models import Kind, LockMode, State
from .calls import Paging


def refuse_numbers(value: Any) -> Any:
    """Refuse numbers, which pydantic reads as seconds since 1970."""
    if not isinstance(value, str | date):
        raise ValueError("Write it as text.")
    return value


# Inlined in the schema, where two definitions of the same name would be one.
VolumeState = Annotated[
    inventory.Volume.State, WithJsonSchema({"type": "string", "enum": inventory.Volume.State.values})
]
SnapshotKind = Annotated[Kind, WithJsonSchema({"type": "string", "enum": Kind.values})]
SnapshotState = Annotated[State, WithJsonSchema({"type": "string", "enum": State.values})]
OperationKind = Annotated[
    models.Operation.Kind, WithJsonSchema({"type": "string", "enum": models.Operation.Kind.values})
]
OperationState = Annotated[
    models.Operation.State, WithJsonSchema({"type": "string", "enum": models.Operation.State.values})
]
Day = Annotated[date, BeforeValidator(refuse_numbers)]
Instant = Annotated[datetime, BeforeValidator(refuse_numbers)]


def row_schema(model: type[Schema]) -> Any:
    """Return the schema of a row of a list. All fields but `id` are optional, because `fields` selects some of them."""
    fields: dict[str, Any] = {
        name: (
            field.rebuild_annotation(),
            Field(... if name == "id" else None, description=field.description),
        )
        for name, field in model.model_fields.items()
    }
    return create_model(f"{model.__name__}Row", __base__=Schema, **fields)


def page_schema(model: type[Schema]) -> Any:
    return create_model(
        f"{model.__name__}Page",
        __base__=Schema,
        items=(list[row_schema(model)], ...),  # type: ignore
        next=(str | None, Field(description="The cursor of the next page, null on the last one.")),
    )


class Price(Schema):
    hourly: str
    monthly: str = Field(description="For 732 hours.")
    currency: str


class Rate(Schema):
    kind: ServiceKind
    rate: str = Field(description="Per GB and hour.")
    currency: str


class Location(Schema):
    id: str = Field(description="Its code, such as 1CNG-YGN-AZ01.")
    city: str
    country: str = Field(description="ISO 3166-1.")
    region: str
    prices: list[Rate] = Field(description="Empty if the credential doesn't see prices.")


class QuoteFilters(Schema):
    location: str = Field(max_length=32)
    kind: ServiceKind = Field(description=f"One of {', '.join(PACKAGE_KINDS)}.")
    size_gb: int = Field(ge=1, le=MAX_SIZE_GB)


class Quote(Schema):
    location: str
    kind: ServiceKind
    size_gb: int
    rate: str = Field(description="Per GB and hour.")
    price: Price


class Volume(Schema):
    id: UUID
    name: str
    state: VolumeState
    size_gb: int
    location: str
    instance_id: UUID | None
    note: str
    tags: list[str]
    created_at: datetime
    price: Price | None = Field(description="Null if it costs nothing, or the credential doesn't see prices.")


class VolumeFilters(Paging):
    location: str = Field("", max_length=32)
    name: str = Field("", max_length=120, description="The whole name; case makes no difference.")


class Lock(Schema):
    until: datetime
    mode: LockMode
    final_at: datetime | None = Field(description="From when nobody can lift a Compliance lock.")


class Snapshot(Schema):
    id: UUID
    name: str
    kind: SnapshotKind
    state: str = Field(
        description="pending, creating, ready, failed, deleting, deleted; or in_bin, cancelled, missing, damaged."
    )
    size_gb: int
    location: str
    volume_id: UUID | None
    instance_id: UUID | None
    note: str
    tags: list[str]
    is_pinned: bool
    created_at: datetime
    ready_at: datetime | None
    expires_at: datetime | None
    bin_until: datetime | None = Field(description="Until when it can be put back.")
    lock: Lock | None
    error: str
    progress: int | None = Field(description="Percent, while it is being taken.")
    price: Price | None = Field(description="Null if it costs nothing, or the credential doesn't see prices.")


class SnapshotFilters(Paging):
    kind: SnapshotKind = Kind.VOLUME
    state: SnapshotState | None = None
    volume_id: UUID | None = None
    location: str = Field("", max_length=32)
    name: str = Field("", max_length=120, description="The whole name; case makes no difference.")


class BinFilters(Paging):
    pass


class DeletionFilters(Schema):
    even_if_last: bool = Field(False, description="Delete it even if it is the last restore point of a disk.")


class Body(Schema):
    model_config = ConfigDict(extra="forbid")


class NewSnapshot(Body):
    """Of one volume, or of all volumes of an instance at one instant."""

    model_config = ConfigDict(
        extra="forbid", json_schema_extra={"example": {"volume_id": "$VOLUME", "name": "before-upgrade"}}
    )
    volume_id: UUID | None = None
    instance_id: UUID | None = None
    name: str = Field("", max_length=1000, description="Unique in the account; by default one with the date.")
    note: str = Field("", max_length=10_000)
    expires_at: Instant | None = Field(None, description="When the portal deletes it.")
    hourly_price: str | None = Field(
        None, max_length=30, description="The price that you expect. If it has changed, the request is refused (409)."
    )


class SnapshotChange(Body):
    model_config = ConfigDict(extra="forbid", json_schema_extra={"example": {"name": "after-upgrade"}})
    name: str | None = Field(None, max_length=1000)
    note: str | None = Field(None, max_length=10_000)


class PutBack(Body):
    model_config = ConfigDict(extra="forbid", json_schema_extra={"example": {}})
    name: str = Field("", max_length=1000, description="Another name, if the old one is taken.")


class NewLock(Body):
    """A lock can be lengthened, never shortened."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"example": {"day": "$DAY"}})
    day: Day = Field(description="The last day on which it is locked, in the account's time zone.")
    mode: LockMode = LockMode.GOVERNANCE
    cooling_off_hours: StrictInt | None = Field(None, ge=1, le=72, description="For Compliance.")


class Operation(Schema):
    id: UUID
    kind: OperationKind
    state: OperationState
    progress: int = Field(description="Percent.")
    snapshot_id: UUID | None
    volume_id: UUID | None
    error: str
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None


class OperationFilters(Paging):
    snapshot_id: UUID | None = Field(None, description="All of one snapshot; by default those in progress.")


class UsageLine(Schema):
    resource_id: UUID
    kind: ServiceKind
    name: str
    location: str
    from_at: datetime
    to_at: datetime
    hours: int
    size_gb: int
    rate: str | None
    amount: str
    currency: str
    invoice: str = Field(description="Its number, empty if it isn't invoiced yet.")


class UsagePage(Schema):
    items: list[UsageLine]
    next: int | None = Field(description="`offset` of the next page, null on the last one.")
    total: str = Field(description="Of all rows.")


class UsageFilters(Schema):
    month: str = Field("", pattern=r"^([12][0-9]{3}-(0[1-9]|1[0-2]))?$", description="Such as 2026-11; by default all.")
    limit: int = Field(50, ge=1, le=100)
    offset: int = Field(0, ge=0, le=1_000_000)


class Invoice(Schema):
    id: UUID
    number: str
    month: date
    from_at: datetime
    to_at: datetime
    issued_at: datetime
    project_total: str = Field(description="Of this project. The whole invoice is on the portal's pages.")
    currency: str


class ActivityEntry(Schema):
    id: UUID
    at: datetime
    actor: str
    action: str
    target_kind: str
    target_id: str
    target: str
    changes: dict[str, list[str]] = Field(description="{field: [before, after]}")


class ActivityFilters(Paging):
    action: str = Field("", max_length=40)
