"""Identity v3 and Block Storage v3 for OpenStack's clients, which tests/snapshots/api/test_clients.py runs."""

from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from django.test import Client
from django.urls import reverse
from django.utils import timezone
from structlog.testing import capture_logs

from billing.models import UsageSegment
from billing.wallet import buy_credits
from cng_portal.accounts.models import Act, ApplicationCredential, Membership, Role
from cng_portal.activity.models import Activity
from cng_portal.inventory.models import VirtualMachine, Volume
from snapshots.models import Operation, Snapshot
from snapshots.services import request_snapshot
from tests.factories import (
    CREDENTIAL_SECRET,
    ApplicationCredentialFactory,
    LocationFactory,
    MembershipFactory,
    ProjectFactory,
    SnapshotFactory,
    SnapshotLockFactory,
    VMSnapshotFactory,
    VolumeFactory,
)
from tests.snapshots.disks import put_volume, run_active_operations, sell_everywhere

pytestmark = pytest.mark.django_db

JSON = "application/json"


class Api:
    """Requests to the Block Storage of the volume's location, with a token of the credential."""

    def __init__(self, credential: ApplicationCredential, volume: Volume) -> None:
        self.credential, self.client = credential, Client()
        self.root = f"/volume/{volume.location_id}/v3/{credential.project_id.hex}"
        self.headers = {"X-Auth-Token": self.sign_in()["X-Subject-Token"], "OpenStack-API-Version": "volume 3.40"}

    def sign_in(self, secret: str = CREDENTIAL_SECRET, **others: str) -> Any:
        values = {"id": self.credential.pk.hex, "secret": secret} | others
        identity = {"methods": ["application_credential"], "application_credential": values}
        return self.client.post("/identity/v3/auth/tokens", {"auth": {"identity": identity}}, JSON)

    def __call__(self, method: str, path: str, body: Any = None, **headers: str) -> Any:
        return self.client.generic(
            method,
            self.root + path,
            "" if body is None else self.client._encode_json(body, JSON),
            JSON,
            headers=self.headers | headers,
        )

    def get(self, path: str, **headers: str) -> Any:
        response = self("GET", path, **headers)
        assert response.status_code == 200, response.content
        return response.json()


@pytest.fixture
def member() -> Membership:
    return MembershipFactory(project__customer__postpaid=True, role=Role.MEMBER)


@pytest.fixture
def volume(member: Membership, storage_root: Path) -> Volume:
    volume = VolumeFactory(project=member.project, name="data-1")
    put_volume(storage_root, volume, b"bytes")
    sell_everywhere()
    return volume


@pytest.fixture
def credential(member: Membership) -> ApplicationCredential:
    return ApplicationCredentialFactory(user=member.user, project=member.project)


@pytest.fixture
def api(credential: ApplicationCredential, volume: Volume) -> Api:
    return Api(credential, volume)


def message_of(response: Any, status: int, fault: str) -> str:
    assert (response.status_code, [*response.json()]) == (status, [fault]), response.content
    assert response.json()[fault]["code"] == status
    return str(response.json()[fault]["message"])


def properties(content: dict[str, Any]) -> dict[str, str]:
    return {name: value for name, value in content["metadata"].items() if not name.startswith("1cng:")}


def test_versions_are_public_and_a_token_has_a_region_for_each_open_location(api: Api, volume: Volume) -> None:
    assert api.client.get("/identity").json()["versions"]["values"][0]["id"] == "v3.14"
    assert api.client.get("/identity/v3/").json()["version"]["status"] == "stable"
    version = api.client.get(f"/volume/{volume.location_id}/v3/").json()["versions"][0]
    assert (version["min_version"], version["version"]) == ("3.0", "3.40")
    other, closed = LocationFactory(), LocationFactory(closed=True)
    token = api.sign_in().json()["token"]
    regions = [endpoint["region"] for endpoint in token["catalog"][1]["endpoints"]]
    assert regions == [volume.location_id, other.pk] and closed.pk not in regions
    assert token["catalog"][1]["endpoints"][0]["url"] == f"http://testserver{api.root}"
    assert token["project"]["id"] == api.credential.project_id.hex
    # A token gives another one, which doesn't last longer.
    identity = {"methods": ["token"], "token": {"id": api.headers["X-Auth-Token"]}}
    again = api.client.post("/identity/v3/auth/tokens", {"auth": {"identity": identity}}, JSON)
    assert again.status_code == 201 and again.json()["token"]["expires_at"] <= token["expires_at"]
    catalog = api.client.get("/identity/v3/auth/catalog", headers=api.headers).json()["catalog"]
    assert catalog == token["catalog"]


@pytest.mark.parametrize(
    "body",
    [b"{", b"[]", b'{"auth": {}}', b'{"auth": {"identity": {"methods": ["password"]}}}', b"[" * 50_000],
)
def test_a_request_for_a_token_without_a_credential_is_explained(body: bytes) -> None:
    response = Client().generic("POST", "/identity/v3/auth/tokens", body, JSON)
    assert message_of(response, 400, "badRequest")


@pytest.mark.both_databases
def test_a_null_character_is_refused_or_finds_nothing(api: Api) -> None:
    for path in ("/volumes/a%00b", "/snapshots?name=a%00b", "/snapshots/detail?marker=%00", "/types/%00"):
        assert message_of(api("GET", path), 400, "badRequest")
    assert api.client.get("/volume/%00/v3/x/limits", headers=api.headers).status_code == 400


def test_without_a_valid_token_everything_is_refused_and_a_session_gives_no_access(
    api: Api, member: Membership, client_for: Callable[..., Client]
) -> None:
    assert api.sign_in("1cng_" + 24 * "5f").status_code == 401
    assert api.sign_in(id=uuid4().hex).status_code == 401
    for token in ("", "x", api.headers["X-Auth-Token"] + "x"):
        response = api("GET", "/volumes", **{"X-Auth-Token": token})
        assert (response.status_code, response.json()["error"]["code"]) == (401, 401)
    assert client_for(member.user).get(f"{api.root}/volumes").status_code == 401
    assert api("GET", "/volumes").cookies == {}
    assert api("GET", "/volumes")["Cross-Origin-Resource-Policy"] == "same-origin"
    # A change without a CSRF token, which only sessions need
    strict = Client(enforce_csrf_checks=True)
    assert strict.post(f"{api.root}/snapshots", {}, JSON, headers=api.headers).status_code == 400
    ApplicationCredential.objects.update(revoked_at=timezone.now())
    assert api("GET", "/volumes").status_code == 401


def test_a_snapshot_is_the_same_as_one_of_the_wizard(api: Api, volume: Volume, member: Membership) -> None:
    body = {"volume_id": str(volume.pk), "name": "nightly", "description": "a note", "metadata": {"job": "cron"}}
    response = api("POST", "/snapshots", {"snapshot": body | {"force": None}})
    assert response.status_code == 202
    content = response.json()["snapshot"]
    assert (content["status"], content["name"], content["size"]) == ("creating", "nightly", 1)
    twin = request_snapshot(source=volume, name="twin", user=member.user)
    run_active_operations()
    snapshot = Snapshot.objects.get(pk=content["id"])
    twin.refresh_from_db()
    for name in ("state", "customer_id", "project_id", "volume_id", "size_gb", "requested_by_id", "location_id"):
        assert getattr(snapshot, name) == getattr(twin, name)
    assert (snapshot.note, snapshot.metadata) == ("a note", {"job": "cron"})
    entries, twins = (
        sorted(Activity.objects.filter(target_id=str(pk)).values_list("action", "actor__email"), key=str)
        for pk in (snapshot.pk, twin.pk)
    )
    assert entries == twins and ("snapshot.capture", member.user.email) in entries
    charged, twice = (
        UsageSegment.objects.filter(resource_id=pk).values("kind", "size_gb") for pk in (snapshot.pk, twin.pk)
    )
    assert list(charged) == list(twice) and len(charged) == 1
    content = api.get(f"/snapshots/{snapshot.pk}")["snapshot"]
    assert (content["status"], content["os-extended-snapshot-attributes:progress"]) == ("available", "100%")
    assert properties(content) == {"job": "cron"}
    assert float(content["metadata"]["1cng:hourly_price"]) > 0
    api.credential.acts.remove(Act.BILL)
    api.credential.save()
    assert api.get(f"/snapshots/{snapshot.pk}")["snapshot"]["metadata"] == {"job": "cron"}


def test_a_snapshot_is_renamed_labelled_and_deleted(
    api: Api, volume: Volume, client_for: Callable[..., Client]
) -> None:
    snapshot = SnapshotFactory(volume=volume, name="before")
    SnapshotFactory(volume=volume, name="another")
    path = f"/snapshots/{snapshot.pk}"
    changed = api("PUT", path, {"snapshot": {"name": "after", "description": "a note"}}).json()["snapshot"]
    assert (changed["name"], changed["description"]) == ("after", "a note")
    assert api("POST", f"{path}/metadata", {"metadata": {"a": "1", "b": "2"}}).json() == {
        "metadata": {"a": "1", "b": "2"}
    }
    assert api("DELETE", f"{path}/metadata/a").status_code == 200
    assert api("DELETE", f"{path}/metadata/a").status_code == 404
    assert api("PUT", f"{path}/metadata/c", {"meta": {"c": "3"}}).json() == {"meta": {"c": "3"}}
    assert message_of(api("PUT", path, {"snapshot": {}}), 400, "badRequest")
    shown = api.get(f"{path}/metadata")["metadata"]
    assert properties({"metadata": shown}) == {"b": "2", "c": "3"}
    # What a client read with prices and sends back
    assert api("PUT", f"{path}/metadata", {"metadata": shown}).json()["metadata"] == {"b": "2", "c": "3"}
    reserved = api("POST", f"{path}/metadata", {"metadata": {"1cng:hourly_price": "0"}})
    assert "are the portal's" in message_of(reserved, 400, "badRequest")
    page = client_for(api.credential.user).get(reverse("snapshots:snapshot", args=[snapshot.pk])).text
    assert "<code>b=2</code><br><code>c=3</code>" in page
    assert api("DELETE", path).status_code == 202
    run_active_operations()
    assert api("GET", path).status_code == 404
    assert Activity.objects.filter(action="labels.change", target_id=str(snapshot.pk)).count() == 4


def test_the_last_restore_point_is_deleted_only_if_it_can_be_put_back(api: Api, volume: Volume, settings: Any) -> None:
    path = f"/snapshots/{SnapshotFactory(volume=volume).pk}"
    settings.RECYCLE_BIN_DAYS = 0
    assert "is the last restore point" in message_of(api("DELETE", path), 400, "badRequest")
    settings.RECYCLE_BIN_DAYS = 7
    assert api("DELETE", path).status_code == 202
    assert Snapshot.objects.get().is_in_bin


def test_volumes_are_created_grown_changed_reverted_and_deleted(api: Api, volume: Volume) -> None:
    zone = volume.location_id
    created = api("POST", "/volumes", {"volume": {"size": "2", "name": "empty", "availability_zone": zone}})
    assert (created.status_code, created.json()["volume"]["status"]) == (202, "creating")
    empty = created.json()["volume"]["id"]
    SnapshotFactory(volume=volume)
    body = {"volume_id": str(volume.pk), "name": "s"}
    taken = api("POST", "/snapshots", {"snapshot": body}).json()["snapshot"]["id"]
    run_active_operations()
    copy = api("POST", "/volumes", {"volume": {"snapshot_id": taken, "name": "copy", "metadata": {"a": "1"}}}).json()
    assert copy["volume"]["size"] == 1
    run_active_operations()
    copied = api.get(f"/volumes/{copy['volume']['id']}")["volume"]
    assert copied["snapshot_id"] == taken
    assert (copied["status"], properties(copied)) == ("available", {"a": "1"})
    assert api("POST", f"/volumes/{empty}/action", {"os-extend": {"new_size": 3}}).status_code == 202
    assert api.get(f"/volumes/{empty}")["volume"]["status"] == "extending"
    assert [row["id"] for row in api.get("/volumes?status=extending")["volumes"]] == [empty]
    run_active_operations()
    changed = api("PUT", f"/volumes/{empty}", {"volume": {"name": "grown", "metadata": {"b": "2"}}}).json()["volume"]
    assert (changed["size"], changed["name"], properties(changed)) == (3, "grown", {"b": "2"})
    too_early = api("POST", f"/volumes/{volume.pk}/action", {"revert": {"snapshot_id": taken}}, **{
        "OpenStack-API-Version": "volume 3.39"
    })  # fmt: skip
    assert too_early.status_code == 404
    other = api("POST", f"/volumes/{empty}/action", {"revert": {"snapshot_id": taken}})
    assert "another volume" in message_of(other, 400, "badRequest")
    assert api("POST", f"/volumes/{volume.pk}/action", {"revert": {"snapshot_id": taken}}).status_code == 202
    assert api.get(f"/volumes/{volume.pk}")["volume"]["status"] == "reverting"
    twice = api("POST", f"/volumes/{volume.pk}/action", {"revert": {"snapshot_id": taken}})
    assert message_of(twice, 400, "badRequest")
    run_active_operations()
    assert Operation.objects.get(kind=Operation.Kind.RESTORE).state == Operation.State.SUCCEEDED
    assert message_of(api("DELETE", f"/volumes/{empty}?cascade=true"), 400, "badRequest")
    assert api("DELETE", f"/volumes/{empty}").status_code == 202
    run_active_operations()
    assert api("GET", f"/volumes/{empty}").status_code == 404


def test_lists_are_filtered_ordered_and_continue_by_key(api: Api, volume: Volume) -> None:
    named = {name: SnapshotFactory(volume=volume, name=name) for name in ("c", "a", "b")}
    failed = SnapshotFactory(volume=volume, name="d", failed=True)
    other = SnapshotFactory(volume=VolumeFactory(project=volume.project, location=volume.location), name="e")

    def names(query: str) -> list[str]:
        return [row["name"] for row in api.get(f"/snapshots/detail?{query}")["snapshots"]]

    assert names("sort=name:asc") == ["a", "b", "c", "d", "e"]
    assert names("name=b") == ["b"]
    assert names("status=error") == ["d"]
    assert names(f"volume_id={other.volume_id}&all_tenants=1") == ["e"]
    page = api.get("/snapshots?limit=2&sort_key=name&sort_dir=desc")
    assert [row["name"] for row in page["snapshots"]] == ["e", "d"]
    seen = []
    while link := next((link["href"] for link in page.get("snapshots_links", [])), None):
        page = api.client.get(link, headers=api.headers).json()
        seen += [row["name"] for row in page["snapshots"]]
    assert seen == ["c", "b", "a"]
    assert names(f"marker={failed.pk}&sort=name:asc") == ["e"]
    assert names(f"limit=0&marker={named['a'].pk}") == []
    for query in (
        "colour=red",
        "limit=many",
        "with_count=true",
        "sort=colour",
        "sort=name:up",
        "offset=2",
    ):
        assert message_of(api("GET", f"/snapshots/detail?{query}"), 400, "badRequest")
    for marker in (uuid4(), "x"):
        assert message_of(api("GET", f"/snapshots/detail?marker={marker}"), 404, "itemNotFound")


def test_only_volumes_and_snapshots_of_the_project_and_region_exist(api: Api, volume: Volume) -> None:
    project = ProjectFactory(customer=volume.project.customer)
    MembershipFactory(project=project, user=api.credential.user)
    elsewhere = VolumeFactory(project=volume.project)
    foreign = VolumeFactory(location=volume.location)
    unrelated = VolumeFactory(project=project, location=volume.location)
    gone = VolumeFactory(project=volume.project, location=volume.location, gone=True)
    assert [row["id"] for row in api.get("/volumes/detail")["volumes"]] == [str(volume.pk)]
    answers = {
        api("GET", f"/volumes/{pk}").content.replace(str(pk).encode(), b"")
        for pk in (elsewhere.pk, foreign.pk, unrelated.pk, gone.pk, uuid4(), "x")
    }
    assert len(answers) == 1
    for other in (elsewhere, foreign, unrelated):
        snapshot = SnapshotFactory(volume=other)
        assert api("GET", f"/snapshots/{snapshot.pk}").status_code == 404
        for method, path, body in (
            ("POST", "/snapshots", {"snapshot": {"volume_id": str(other.pk)}}),
            ("POST", "/volumes", {"volume": {"snapshot_id": str(snapshot.pk)}}),
            ("DELETE", f"/volumes/{other.pk}", None),
            ("DELETE", f"/snapshots/{snapshot.pk}", None),
            ("PUT", f"/snapshots/{snapshot.pk}", {"snapshot": {"name": "x"}}),
            ("POST", f"/snapshots/{snapshot.pk}/metadata", {"metadata": {}}),
            ("POST", f"/volumes/{other.pk}/action", {"os-extend": {"new_size": 9}}),
            ("POST", f"/volumes/{volume.pk}/action", {"revert": {"snapshot_id": str(snapshot.pk)}}),
        ):
            assert message_of(api(method, path, body), 404, "itemNotFound")
    machine = VMSnapshotFactory(vm__project=volume.project, vm__location=volume.location)
    assert api("GET", f"/snapshots/{machine.pk}").status_code == 404
    for root in (f"/volume/{volume.location_id}/v3/{project.pk.hex}", f"/volume/NOWHERE/v3/{volume.project_id.hex}"):
        assert api.client.get(f"{root}/volumes", headers=api.headers).status_code == 404


CHANGES: list[tuple[Act, str, str, dict[str, Any] | None]] = [
    (Act.SNAPSHOT, "POST", "/snapshots", {"snapshot": {"volume_id": "{volume.pk}"}}),
    (Act.SNAPSHOT, "PUT", "/snapshots/{snapshot.pk}", {"snapshot": {"name": "new"}}),
    (Act.SNAPSHOT, "POST", "/snapshots/{snapshot.pk}/metadata", {"metadata": {"a": "b"}}),
    (Act.VOLUME, "POST", "/volumes", {"volume": {"size": 1}}),
    (Act.VOLUME, "PUT", "/volumes/{volume.pk}", {"volume": {"name": "new"}}),
    (Act.VOLUME, "PUT", "/volumes/{volume.pk}/metadata", {"metadata": {"a": "b"}}),
    (Act.VOLUME, "POST", "/volumes/{volume.pk}/action", {"os-extend": {"new_size": 2}}),
    (Act.RESTORE, "POST", "/volumes", {"volume": {"snapshot_id": "{snapshot.pk}"}}),
    (Act.RESTORE, "POST", "/volumes/{volume.pk}/action", {"revert": {"snapshot_id": "{snapshot.pk}"}}),
    (Act.DELETE, "DELETE", "/snapshots/{snapshot.pk}", None),
    (Act.DELETE, "DELETE", "/volumes/{volume.pk}", None),
]


def test_a_credential_does_only_what_it_is_allowed_and_a_viewers_nothing(
    api: Api, volume: Volume, member: Membership
) -> None:
    snapshot = SnapshotFactory(volume=volume)
    before = list(Operation.objects.values_list("pk")), list(Activity.objects.values_list("pk"))
    for act, method, path, template in CHANGES:
        text = api.client._encode_json(template, JSON).replace("{volume.pk}", str(volume.pk)) if template else ""
        body = text.replace("{snapshot.pk}", str(snapshot.pk))
        for role, acts in ((Role.MEMBER, set(Act.values) - {act}), (Role.VIEWER, set(Act.values))):
            ApplicationCredential.objects.update(role=role, acts=sorted(acts))
            response = api.client.generic(
                method, api.root + path.format(volume=volume, snapshot=snapshot), body, JSON, headers=api.headers
            )
            assert str(act.label) in message_of(response, 403, "forbidden"), path
    assert before == (list(Operation.objects.values_list("pk")), list(Activity.objects.values_list("pk")))
    api.get("/volumes/detail")


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "text"),
    [
        ("POST", "/snapshots", {"snapshot": {"volume_id": "{pk}", "colour": "red"}}, 400, "“colour” is not a field"),
        ("POST", "/snapshots", {"snapshot": {"volume_id": 7}}, 400, "“volume_id” has the wrong type"),
        ("POST", "/snapshots", {"snapshot": {"volume_id": "{pk}", "name": "a\nb"}}, 400, "can't be displayed"),
        ("POST", "/snapshots", {"snapshot": {"volume_id": "{pk}", "name": "taken"}}, 409, "is free"),
        ("POST", "/snapshots", {"snapshot": {"volume_id": "{pk}", "metadata": {"a": 1}}}, 400, "object with texts"),
        ("POST", "/snapshots", {"snapshot": {"volume_id": "{pk}", "description": "x" * 501}}, 400, "500"),
        ("POST", "/snapshots", {"volume_id": "{pk}"}, 400, "“snapshot” alone"),
        ("POST", "/snapshots", [], 400, "must be a JSON object"),
        ("POST", "/snapshots", {"snapshot": {"name": "x" * 70_000}}, 413, "more than 65536 bytes"),
        ("POST", "/snapshots", {"snapshot": {"volume_id": "{pk}", "force": "perhaps"}}, 400, "true or false"),
        ("POST", "/snapshots", {"snapshot": {"name": "x"}}, 400, "Give the ID of the volume"),
        ("POST", "/volumes", {"volume": {"name": "x"}}, 400, "Give the size"),
        ("POST", "/volumes", {"volume": {"size": 0}}, 400, "whole number of GB"),
        ("POST", "/volumes", {"volume": {"size": True}}, 400, "wrong type"),
        ("POST", "/volumes", {"volume": {"size": 1, "source_volid": "{pk}"}}, 400, "“source_volid” isn't supported"),
        ("POST", "/volumes", {"volume": {"size": 1, "availability_zone": "moon"}}, 400, "availability zone"),
        ("POST", "/volumes", {"volume": {"size": 1, "volume_type": "gold"}}, 404, "volume type"),
        ("POST", "/volumes", {"volume": {"size": 999_999}}, 413, "at most"),
        ("POST", "/volumes/{pk}/action", {"os-reset_status": {"status": "error"}}, 400, "There is no action"),
        ("POST", "/volumes/{pk}/action", {"os-extend": {"new_size": 1}}, 400, "can't shrink"),
        ("DELETE", "/volumes", None, 405, "isn't allowed"),
        ("PATCH", "/snapshots/{pk}", {}, 405, "isn't allowed"),
    ],
)
def test_bad_input_is_explained_and_changes_nothing(
    method: str, path: str, body: Any, status: int, text: str, api: Api, volume: Volume
) -> None:
    SnapshotFactory(volume=volume, name="taken")
    raw = "" if body is None else api.client._encode_json(body, JSON).replace("{pk}", str(volume.pk))
    response = api.client.generic(
        method, api.root + path.format(pk=volume.pk), raw if raw else "", JSON, headers=api.headers
    )
    content = response.json()
    assert (response.status_code, content[next(iter(content))]["code"]) == (status, status), content
    assert text in content[next(iter(content))]["message"]
    assert not Operation.objects.exists() and Volume.objects.count() == 1


@pytest.mark.parametrize(
    ("header", "answer"),
    [("volume 3.40", "3.40"), ("volume latest", "3.40"), ("compute 2.1, volume 3.7", "3.7"), ("", "3.0")],
)
def test_a_served_microversion_is_answered_with_itself(header: str, answer: str, api: Api) -> None:
    response = api("GET", "/limits", **{"OpenStack-API-Version": header})
    assert (response.status_code, response["OpenStack-API-Version"]) == (200, f"volume {answer}")


def test_other_microversions_are_refused(api: Api) -> None:
    refused = api("GET", "/limits", **{"OpenStack-API-Version": "volume 3.41"})
    assert refused["OpenStack-API-Version"] == "volume 3.41" and "OpenStack-API-Version" in refused["Vary"]
    assert refused["X-OpenStack-Request-Id"] == f"req-{refused['X-Request-ID']}"
    for header, status, fault in (("volume 3.41", 406, "computeFault"), ("volume x", 400, "badRequest")):
        assert message_of(api("GET", "/limits", **{"OpenStack-API-Version": header}), status, fault)


def test_limits_quotas_zones_and_types_are_the_portals(api: Api, volume: Volume, settings: Any) -> None:
    customer = volume.project.customer
    customer.volume_quota, customer.snapshot_quota = 1, 1
    customer.save()
    SnapshotFactory(volume=volume)
    absolute = api.get("/limits")["limits"]["absolute"]
    assert (absolute["maxTotalVolumes"], absolute["totalVolumesUsed"]) == (1, 1)
    assert (absolute["maxTotalSnapshots"], absolute["totalSnapshotsUsed"]) == (1, 1)
    pk = volume.project_id.hex
    assert api.get(f"/os-quota-sets/{pk}")["quota_set"]["snapshots"] == 1
    in_use = api.get(f"/os-quota-sets/{pk}?usage=true")["quota_set"]["snapshots"]
    assert in_use == {"limit": 1, "in_use": 1, "reserved": 0}
    assert api("GET", f"/os-quota-sets/{uuid4().hex}").status_code == 404
    assert api.get("/os-availability-zone")["availabilityZoneInfo"][0]["zoneName"] == volume.location_id
    kind = api.get("/types")["volume_types"][0]
    assert api.get(f"/types/{kind['id']}")["volume_type"] == kind
    full = api("POST", "/snapshots", {"snapshot": {"volume_id": str(volume.pk)}})
    assert "snapshots of your account" in message_of(full, 413, "overLimit")
    full = api("POST", "/volumes", {"volume": {"size": 1}})
    assert "volumes of your account" in message_of(full, 413, "overLimit")
    customer.snapshot_quota = -1
    customer.save()
    settings.ACTIONS_PER_HOUR = settings.ACTIONS_PER_HOUR | {"capture": 1}
    assert api("POST", "/snapshots", {"snapshot": {"volume_id": str(volume.pk)}}).status_code == 202
    again = api("POST", "/snapshots", {"snapshot": {"volume_id": str(volume.pk)}})
    assert "limit of 1" in message_of(again, 413, "overLimit") and again["Retry-After"]


def test_a_prepaid_account_without_credits_is_refused(api: Api, volume: Volume) -> None:
    customer = volume.project.customer
    customer.billing_type = "prepaid"
    customer.save()
    response = api("POST", "/snapshots", {"snapshot": {"volume_id": str(volume.pk)}})
    assert message_of(response, 403, "forbidden")
    assert not Snapshot.objects.exists()
    buy_credits(customer=customer, amount_micro=10**12, reason="bought", by=None, key="credits")
    assert api("POST", "/snapshots", {"snapshot": {"volume_id": str(volume.pk)}}).status_code == 202


def test_states_are_those_that_clients_wait_for(api: Api, volume: Volume) -> None:
    states = {
        "creating": SnapshotFactory(volume=volume, creating=True),
        "available": SnapshotFactory(volume=volume),
        "error": SnapshotFactory(volume=volume, failed=True),
        "deleting": SnapshotFactory(volume=volume, deleting=True),
    }
    damaged = SnapshotFactory(volume=volume, damaged_at=timezone.now())
    missing = SnapshotFactory(volume=volume, missing_since=timezone.now())
    for status, snapshot in [*states.items(), ("error", damaged), ("error", missing)]:
        assert api.get(f"/snapshots/{snapshot.pk}")["snapshot"]["status"] == status
        assert str(snapshot.pk) in {row["id"] for row in api.get(f"/snapshots?status={status}")["snapshots"]}
    failed = VolumeFactory(
        project=volume.project, location=volume.location, state=Volume.State.ERROR, deleted_at=timezone.now()
    )
    assert api.get(f"/volumes/{failed.pk}")["volume"]["status"] == "error"
    attached = VolumeFactory(project=volume.project, location=volume.location, attached=True)
    assert api.get(f"/volumes/{attached.pk}")["volume"]["status"] == "in-use"
    assert [row["id"] for row in api.get("/volumes?status=in-use")["volumes"]] == [str(attached.pk)]
    assert attached.vm
    VirtualMachine.objects.filter(pk=attached.vm.pk).update(deleted_at=timezone.now())
    left = api.get(f"/volumes/{attached.pk}")["volume"]
    assert (left["status"], left["attachments"]) == ("available", [])
    assert str(attached.pk) in {row["id"] for row in api.get("/volumes?status=available")["volumes"]}


def test_a_locked_snapshot_says_until_when_and_is_not_deleted(api: Api, volume: Volume) -> None:
    snapshot = SnapshotFactory(volume=volume)
    lock = SnapshotLockFactory(snapshot=snapshot)
    content = api.get(f"/snapshots/{snapshot.pk}")["snapshot"]
    assert content["metadata"]["1cng:locked_until"] == f"{lock.until:%Y-%m-%dT%H:%M:%S.%f}"
    assert "is locked" in message_of(api("DELETE", f"/snapshots/{snapshot.pk}"), 400, "badRequest")


def test_lists_cost_as_many_queries_as_ever(
    api: Api, volume: Volume, django_assert_max_num_queries: Callable[..., Any]
) -> None:
    for number in range(5):
        SnapshotFactory(volume=volume, name=f"s-{number}", creating=number == 4)
        VolumeFactory(project=volume.project, location=volume.location, attached=True)
    for path in ("/snapshots/detail", "/volumes/detail", "/limits"):
        with django_assert_max_num_queries(12):
            api.get(path)


def test_an_unexpected_error_is_logged_and_answered_in_the_shape_of_the_api(api: Api, volume: Volume) -> None:
    Volume.objects.update(metadata="no object")
    api.client.raise_request_exception = False
    with capture_logs() as logs:
        response = api("GET", "/volumes/detail")
    message = message_of(response, 500, "computeFault")
    assert response["X-Request-ID"] in message and "request_failed" in {line["event"] for line in logs}


@pytest.mark.parametrize("is_signed_in", [True, False])
def test_a_path_that_is_not_served_is_answered_in_the_shape_of_the_api(is_signed_in: bool, api: Api) -> None:
    client = api.client if is_signed_in else Client()
    assert message_of(client.get(f"{api.root}/backups", headers=api.headers), 404, "itemNotFound")
    assert client.get("/identity/v3/users").json()["error"]["title"] == "Not Found"
    assert client.get("/nowhere/")["Content-Type"].startswith("text/html")
