"""/api/v1: what each credential reads and does, and how errors are written."""

import html
import os
import re
import shutil
import subprocess
from base64 import b64encode
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from threading import Barrier
from typing import Any
from uuid import uuid4

import pytest
from django.db import connections, transaction
from django.test import Client
from django.urls import reverse
from django.utils import timezone
from pydantic import BaseModel

from billing.models import ServiceKind, UsageSegment
from billing.usage import open_segment
from billing.wallet import buy_credits
from cng_portal.accounts.credentials import issue_token
from cng_portal.accounts.models import Act, ApplicationCredential, IdempotencyKey, Membership, Role
from cng_portal.activity.models import Activity
from cng_portal.inventory.models import Volume
from snapshots import services
from snapshots.api.v1 import idempotency, schemas
from snapshots.models import Kind, Operation, Snapshot
from tests.factories import (
    CREDENTIAL_SECRET,
    ApplicationCredentialFactory,
    MembershipFactory,
    ProjectFactory,
    SnapshotFactory,
    SnapshotLockFactory,
    UserFactory,
    VMSnapshotFactory,
    VolumeFactory,
)
from tests.snapshots.disks import put_volume, run_active_operations, sell_everywhere

pytestmark = pytest.mark.django_db

JSON = "application/json"


class Api:
    def __init__(self, credential: ApplicationCredential) -> None:
        self.credential, self.client = credential, Client()
        token = issue_token(credential, expires_at=timezone.now() + timedelta(hours=1))
        self.headers = {"Authorization": f"Bearer {token}"}

    def __call__(self, method: str, path: str, body: Any = None, **headers: str) -> Any:
        content = "" if body is None else self.client._encode_json(body, JSON)
        return self.client.generic(method, f"/api/v1{path}", content, JSON, headers=self.headers | headers)

    def get(self, path: str, model: Any = None) -> Any:
        """Return the content, which has exactly the fields of the schema."""
        response = self("GET", path)
        assert response.status_code == 200, response.content
        if model:
            check_fields(response.json(), model)
        return response.json()


def check_fields(content: dict[str, Any], model: type[BaseModel]) -> None:
    model.model_validate(content)
    assert content.keys() == model.model_fields.keys()


def problem(response: Any, status: int, name: str = "") -> Any:
    assert response.status_code == status, response.content
    assert response["Content-Type"] == "application/problem+json"
    content = response.json()
    assert (content["status"], content["type"].partition("#")[2]) == (status, name), content
    assert content["request_id"] == response["X-Request-ID"]
    return content


@pytest.fixture
def member() -> Membership:
    project = ProjectFactory(customer__postpaid=True)
    return Membership.objects.get(user=UserFactory(member_of=project))


@pytest.fixture
def volume(member: Membership, storage_root: Path) -> Volume:
    volume = VolumeFactory(project=member.project, name="data-1")
    put_volume(storage_root, volume, b"bytes")
    sell_everywhere()
    return volume


@pytest.fixture
def credential(member: Membership) -> ApplicationCredential:
    return ApplicationCredentialFactory(user=member.user, project=member.project, role=Role.OWNER)


@pytest.fixture
def api(credential: ApplicationCredential, volume: Volume) -> Api:
    return Api(credential)


def test_a_token_or_the_secret_gives_access_and_a_session_does_not(
    api: Api, member: Membership, client_for: Callable[..., Client]
) -> None:
    token = api.headers["Authorization"].removeprefix("Bearer ")
    secret = b64encode(f"{api.credential.pk.hex}:{CREDENTIAL_SECRET}".encode()).decode()
    wrong = b64encode(f"{api.credential.pk.hex}:1cng_{24 * '5f'}".encode()).decode()
    answers = {
        name: Client().get("/api/v1/volumes", headers=headers).status_code
        for name, headers in {
            "bearer": {"Authorization": f"Bearer {token}"},
            "X-Auth-Token": {"X-Auth-Token": token},
            "basic": {"Authorization": f"Basic {secret}"},
            "wrong": {"Authorization": f"Basic {wrong}"},
            "forged": {"Authorization": f"Bearer {token}x"},
            "nothing": {},
        }.items()
    }
    assert answers == {"bearer": 200, "X-Auth-Token": 200, "basic": 200, "wrong": 401, "forged": 401, "nothing": 401}
    response = client_for(member.user).get("/api/v1/volumes")
    assert "application credential" in problem(response, 401)["detail"] and response["WWW-Authenticate"]
    strict = Client(enforce_csrf_checks=True)
    assert strict.post("/api/v1/snapshots", {}, JSON, headers=api.headers).status_code == 422
    ApplicationCredential.objects.update(revoked_at=timezone.now())
    problem(api("GET", "/volumes"), 401)


def test_a_snapshot_is_the_same_as_one_of_the_wizard(api: Api, volume: Volume, member: Membership) -> None:
    response = api("POST", "/snapshots", {"volume_id": str(volume.pk), "name": "nightly", "note": "a note"})
    assert response.status_code == 202, response.content
    content = response.json()
    check_fields(content, schemas.Snapshot)
    assert (content["state"], content["name"], content["size_gb"]) == ("pending", "nightly", 1)
    assert response["Location"] == f"/api/v1/snapshots/{content['id']}"
    twin = services.request_snapshot(source=volume, name="twin", user=member.user, note="a note")
    [operation] = api.get(f"/operations?snapshot_id={content['id']}")["items"]
    assert (operation["kind"], operation["state"], operation["progress"]) == ("capture", "pending", 0)
    run_active_operations()
    assert api.get(f"/operations/{operation['id']}", schemas.Operation)["progress"] == 100
    snapshot = Snapshot.objects.get(pk=content["id"])
    twin.refresh_from_db()
    for name in (
        "state",
        "customer_id",
        "project_id",
        "volume_id",
        "size_gb",
        "requested_by_id",
        "location_id",
        "note",
    ):
        assert getattr(snapshot, name) == getattr(twin, name)
    entries, twins = (
        sorted(Activity.objects.filter(target_id=str(pk)).values_list("action", "actor__email"), key=str)
        for pk in (snapshot.pk, twin.pk)
    )
    assert entries == twins and ("snapshot.capture", member.user.email) in entries
    charged, twice = (
        UsageSegment.objects.filter(resource_id=pk).values("kind", "size_gb") for pk in (snapshot.pk, twin.pk)
    )
    assert list(charged) == list(twice) and len(charged) == 1
    shown = api.get(f"/snapshots/{snapshot.pk}", schemas.Snapshot)
    assert (shown["state"], float(shown["price"]["hourly"]) > 0) == ("ready", True)


def test_a_snapshot_is_changed_locked_deleted_and_put_back(api: Api, volume: Volume, settings: Any) -> None:
    settings.RECYCLE_BIN_DAYS = 7
    taken = api("POST", "/snapshots", {"volume_id": str(volume.pk), "name": "before"}).json()["id"]
    run_active_operations()
    path = f"/snapshots/{taken}"
    changed = api("PATCH", path, {"name": "after", "note": "a note"}).json()
    assert (changed["name"], changed["note"]) == ("after", "a note")
    problem(api("DELETE", path), 409, "last-restore-point")
    deleted = api("DELETE", f"{path}?even_if_last=true")
    assert (deleted.status_code, deleted.json()["state"]) == (200, "in_bin")
    assert [row["id"] for row in api.get("/recycle-bin")["items"]] == [taken]
    assert api.get("/snapshots")["items"] == []
    assert api("POST", f"{path}/put-back", {"name": "back"}).json()["name"] == "back"
    restored = api("POST", f"{path}/restore")
    assert restored.status_code == 202, restored.content
    check_fields(restored.json(), schemas.Operation)
    run_active_operations()
    assert api.get(f"/operations/{restored.json()['id']}")["state"] == "succeeded"
    day = (timezone.now() + timedelta(days=3)).date().isoformat()
    locked = api("PUT", f"{path}/lock", {"day": day}).json()
    assert locked["lock"]["mode"] == "governance" and locked["lock"]["until"] > day
    assert "is locked" in problem(api("DELETE", path), 409, "invalid-state")["detail"]
    shorter = problem(api("PUT", f"{path}/lock", {"day": day}), 422)
    assert shorter["errors"][0]["field"] == "day"
    assert Activity.objects.filter(target_id=taken, action__in=["snapshot.bin", "snapshot.put_back"]).count() == 2


def test_prices_quotes_and_volumes(api: Api, volume: Volume) -> None:
    [location] = api.get("/locations", None)["items"]
    check_fields(location, schemas.Location)
    rates = {rate["kind"]: float(rate["rate"]) for rate in location["prices"]}
    quote = api.get(f"/quotes?location={volume.location_id}&kind=bs_snapshot&size_gb=50", schemas.Quote)
    assert float(quote["price"]["hourly"]) == pytest.approx(50 * rates["bs_snapshot"])
    assert float(quote["price"]["monthly"]) == pytest.approx(732 * 50 * rates["bs_snapshot"])
    problem(api("GET", f"/quotes?location={volume.location_id}&kind=vm_backup_auto&size_gb=1"), 409, "not-sold")
    problem(api("GET", "/quotes?location=NOWHERE&kind=bs_snapshot&size_gb=1"), 404)
    assert api.get(f"/volumes/{volume.pk}", schemas.Volume)["name"] == "data-1"
    assert [row["id"] for row in api.get("/volumes?name=DATA-1&fields=name")["items"]] == [str(volume.pk)]
    api.credential.acts.remove(Act.BILL)
    api.credential.save()
    assert api.get("/locations")["items"][0]["prices"] == []
    assert api.get(f"/volumes/{volume.pk}")["price"] is None
    problem(api("GET", f"/quotes?location={volume.location_id}&kind=bs_snapshot&size_gb=1"), 403)


def test_lists_continue_by_key_and_have_the_fields_that_are_wanted(api: Api, volume: Volume) -> None:
    made = [SnapshotFactory(volume=volume, name=f"s-{number}") for number in range(5)]
    SnapshotFactory(volume=volume, name="failed", failed=True)
    machine = VMSnapshotFactory(vm=VolumeFactory(project=volume.project, attached=True).vm)
    page = api.get("/snapshots?limit=2&state=ready&fields=name")
    seen = page["items"]
    assert [row.keys() for row in seen] == [{"id", "name"}] * 2
    while page["next"]:
        SnapshotFactory(volume=volume)  # Taken meanwhile: pages neither skip nor repeat rows.
        query = f"limit=2&state=ready&fields=name&cursor={page['next'].replace('+', '%2B')}"
        page = api.get(f"/snapshots?{query}")
        seen += page["items"]
    assert [row["name"] for row in seen] == [snapshot.name for snapshot in reversed(made)]
    assert [row["id"] for row in api.get("/snapshots?kind=vm")["items"]] == [str(machine.pk)]
    assert [row["name"] for row in api.get("/snapshots?name=S-3")["items"]] == ["s-3"]
    for query, field in {
        "colour=red": "colour",
        "limit=many": "limit",
        "limit=101": "limit",
        "cursor=x": "cursor",
        "fields=colour": "fields",
        "kind=cat": "kind",
        "volume_id=x": "volume_id",
    }.items():
        assert problem(api("GET", f"/snapshots?{query}"), 422)["errors"][0]["field"] == field


def test_usage_invoices_and_activity_are_of_the_project_alone(api: Api, volume: Volume, member: Membership) -> None:
    api("POST", "/snapshots", {"volume_id": str(volume.pk), "name": "mine"})
    other = VolumeFactory(project=ProjectFactory(customer=volume.project.customer), location=volume.location)
    MembershipFactory(project=other.project, user=member.user, role=Role.OWNER)
    with transaction.atomic():
        open_segment(
            kind=ServiceKind.BS_SNAPSHOT,
            resource_id=uuid4(),
            name="of another project",
            project=other.project,
            location=other.location,
            size_gb=1,
            at=timezone.now(),
        )
    run_active_operations()
    usage = api.get("/usage", schemas.UsagePage)
    assert [row["name"] for row in usage["items"]] == ["mine"]
    assert usage["total"] == usage["items"][0]["amount"] and float(usage["total"]) > 0
    assert api.get("/usage?month=2001-01")["items"] == []
    assert api.get("/invoices")["items"] == []
    actions = [entry["action"] for entry in api.get("/activity")["items"]]
    assert "snapshot.capture" in actions
    problem(api("GET", "/usage?month=0000-01"), 422)
    ApplicationCredential.objects.update(role=Role.MEMBER)
    problem(api("GET", "/usage"), 403)
    problem(api("GET", "/invoices"), 403)


def test_only_objects_of_the_project_exist(api: Api, volume: Volume) -> None:
    project = ProjectFactory(customer=volume.project.customer)
    MembershipFactory(project=project, user=api.credential.user)
    foreign, unrelated = VolumeFactory(location=volume.location), VolumeFactory(project=project)
    answers = {api("GET", f"/volumes/{pk}").json()["detail"] for pk in (foreign.pk, unrelated.pk, uuid4())}
    assert len(answers) == 1
    for other in (foreign, unrelated):
        snapshot = SnapshotFactory(volume=other)
        problem(api("POST", "/snapshots", {"volume_id": str(other.pk)}), 404)
        for method, path, body in [
            ("GET", "", None),
            ("PATCH", "", {"name": "x"}),
            ("DELETE", "", None),
            ("POST", "/put-back", {}),
            ("POST", "/restore", None),
            ("PUT", "/lock", {"day": "2030-01-01"}),
        ]:
            problem(api(method, f"/snapshots/{snapshot.pk}{path}", body), 404)
        problem(api("GET", f"/operations/{Operation.objects.create(kind='verify', snapshot=snapshot).pk}"), 404)
    assert api.get("/snapshots")["items"] == api.get("/operations")["items"] == []


def test_a_credential_does_only_what_it_is_allowed_and_a_viewers_nothing(api: Api, volume: Volume) -> None:
    snapshot, binned = SnapshotFactory(volume=volume), SnapshotFactory(volume=volume, binned=True)
    requests: list[tuple[str, str, Any, Act]] = [
        ("POST", "/snapshots", {"volume_id": str(volume.pk)}, Act.SNAPSHOT),
        ("PATCH", f"/snapshots/{snapshot.pk}", {"name": "x"}, Act.SNAPSHOT),
        ("PUT", f"/snapshots/{snapshot.pk}/lock", {"day": "2030-01-01"}, Act.SNAPSHOT),
        ("POST", f"/snapshots/{binned.pk}/put-back", {}, Act.SNAPSHOT),
        ("POST", f"/snapshots/{snapshot.pk}/restore", None, Act.RESTORE),
        ("DELETE", f"/snapshots/{snapshot.pk}", None, Act.DELETE),
        ("GET", "/usage", None, Act.BILL),
        ("GET", "/invoices", None, Act.BILL),
    ]
    for method, path, body, act in requests:
        ApplicationCredential.objects.update(acts=[other for other in Act.values if other != act])
        assert str(act.label) in problem(api(method, path, body), 403)["detail"]
    ApplicationCredential.objects.update(acts=Act.values, role=Role.VIEWER)
    for method, path, body, _act in requests:
        problem(api(method, path, body), 403)
    assert api.get(f"/snapshots/{snapshot.pk}")["state"] == "ready"
    assert not Operation.objects.exists()


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "volume_id"),
        ({"volume_id": 5}, "volume_id"),
        ({"volume_id": "V", "colour": "red"}, "colour"),
        ({"volume_id": "V", "name": "a\0b"}, "name"),
        ({"volume_id": "V", "name": 7}, "name"),
        ({"volume_id": "V", "expires_at": 5}, "expires_at"),
        ({"volume_id": "V", "expires_at": "2030-01-01T00:00:00"}, "expires_at"),
        ({"volume_id": "V", "expires_at": "9999-12-31T23:59:59-12:00"}, "expires_at"),
        ({"volume_id": "V", "hourly_price": "NaN"}, "hourly_price"),
        ({"volume_id": "V", "hourly_price": "1e999999"}, "hourly_price"),
    ],
)
def test_invalid_input_names_the_field_and_does_nothing(
    body: dict[str, Any], field: str, api: Api, volume: Volume
) -> None:
    body = {name: str(volume.pk) if value == "V" else value for name, value in body.items()}
    assert [error["field"] for error in problem(api("POST", "/snapshots", body), 422)["errors"]] == [field]
    assert not Snapshot.objects.exists()


def test_every_error_is_a_problem(api: Api, volume: Volume, settings: Any) -> None:
    path = f"/snapshots/{SnapshotFactory(volume=volume, name='taken').pk}"
    problem(api("POST", "/snapshots"), 422)
    broken = api.client.generic("POST", "/api/v1/snapshots", "{", JSON, headers=api.headers)
    assert problem(broken, 400)["detail"] == "The body must be JSON."
    problem(api("GET", "/snapshots?name=a%00b"), 400)
    problem(api("GET", "/nowhere"), 404)
    problem(api("GET", "/snapshots/x"), 404)
    assert problem(api("POST", path), 405) and "PATCH" in api("POST", path)["Allow"]
    large = {"volume_id": str(volume.pk), "note": "x" * 70_000}
    problem(api("POST", "/snapshots", large), 413)
    taken = problem(api("POST", "/snapshots", {"volume_id": str(volume.pk), "name": "TAKEN"}), 409, "name-taken")
    assert taken["suggestion"] == "TAKEN-2"
    body = {"volume_id": str(volume.pk), "hourly_price": "123"}
    problem(api("POST", "/snapshots", body), 409, "price-changed")
    settings.ACTIONS_PER_HOUR = settings.ACTIONS_PER_HOUR | {"capture": 1}
    assert api("POST", "/snapshots", {"volume_id": str(volume.pk)}).status_code == 202
    limited = api("POST", "/snapshots", {"volume_id": str(volume.pk)})
    assert problem(limited, 429, "rate-limited") and 3500 < int(limited["Retry-After"]) <= 3600
    ApplicationCredential.objects.update(acts=5)
    api.client.raise_request_exception = False
    assert "Quote the request" in problem(api("GET", path), 500)["detail"]


def test_head_is_answered_as_get_without_a_body(api: Api, volume: Volume) -> None:
    path = f"/snapshots/{SnapshotFactory(volume=volume).pk}"
    for url in (path, "/snapshots", "/openapi.json"):
        head, get = api("HEAD", url), api("GET", url)
        assert (head.status_code, head.content, head.get("ETag")) == (200, b"", get.get("ETag"))
        assert head["Content-Type"] == get["Content-Type"]
    assert api("HEAD", f"/snapshots/{uuid4()}").status_code == 404
    assert Client().head("/api/v1/snapshots").status_code == 401
    assert api("HEAD", f"{path}/lock").status_code == 405
    assert api("POST", path)["Allow"] == "DELETE, GET, HEAD, PATCH"
    assert api("PUT", "/openapi.json")["Allow"] == "GET, HEAD"


def test_a_prepaid_account_without_credits_and_a_full_quota_are_refused(api: Api, volume: Volume) -> None:
    customer, body = volume.project.customer, {"volume_id": str(volume.pk)}
    customer.billing_type = "prepaid"
    customer.save()
    problem(api("POST", "/snapshots", body), 409, "insufficient-credit")
    buy_credits(customer=customer, amount_micro=10**12, reason="bought", by=None, key="credits")
    customer.snapshot_quota = 0
    customer.save()
    problem(api("POST", "/snapshots", body), 409, "quota-exceeded")
    assert not Snapshot.objects.exists()


def test_a_stale_etag_is_refused(api: Api, volume: Volume) -> None:
    path = f"/snapshots/{SnapshotFactory(volume=volume, name='one').pk}"
    etag = api("GET", path)["ETag"]
    renamed = api("PATCH", path, {"name": "two"}, **{"If-Match": etag})
    assert renamed.status_code == 200 and renamed["ETag"] != etag
    for method, url, body in [
        ("PATCH", path, {"name": "three"}),
        ("DELETE", path, None),
        ("POST", f"{path}/restore", None),
    ]:
        stale = api(method, url, body, **{"If-Match": etag})
        assert problem(stale, 412, "changed") and stale["ETag"] == renamed["ETag"]
    assert api.get(path)["name"] == "two"
    last = api("DELETE", f"{path}?even_if_last=true", **{"If-Match": f'"x", {renamed["ETag"]}'})
    assert last.status_code == 200


def test_a_repeated_key_is_answered_alike_and_refused_for_another_request(api: Api, volume: Volume) -> None:
    body, key = {"volume_id": str(volume.pk), "name": "once"}, {"Idempotency-Key": "job-7"}
    first = api("POST", "/snapshots", body, **key)
    again = api("POST", "/snapshots", body, **key)
    assert (again.status_code, again.json(), again["Location"]) == (202, first.json(), first["Location"])
    assert again["Idempotency-Replayed"] == "true" and "Idempotency-Replayed" not in first
    problem(api("POST", "/snapshots", body | {"name": "twice"}, **key), 422, "key-reused")
    problem(api("DELETE", f"/snapshots/{first.json()['id']}", **key), 422, "key-reused")
    problem(api("POST", "/snapshots", body, **{"Idempotency-Key": "x" * 256}), 422)
    # Another credential's keys are its own.
    other = Api(ApplicationCredentialFactory(user=api.credential.user, project=volume.project))
    problem(other("POST", "/snapshots", body, **key), 409, "name-taken")
    # What was refused has freed its key.
    assert other("POST", "/snapshots", body | {"name": "free"}, **key).status_code == 202
    assert Snapshot.objects.count() == 2
    # One whose outcome is unknown
    IdempotencyKey.objects.filter(credential=api.credential).update(answer=None)
    waiting = api("POST", "/snapshots", body, **key)
    assert problem(waiting, 409, "in-progress") and waiting["Retry-After"] == "1"
    later = timezone.now() + timedelta(days=1, seconds=1)
    IdempotencyKey.objects.update(created_at=timezone.now() - timedelta(days=1, seconds=1))
    problem(api("POST", "/snapshots", body, **key), 409, "name-taken")
    assert idempotency.delete_old(now=later) == 1 and not IdempotencyKey.objects.exists()


@pytest.mark.race
@pytest.mark.slow
@pytest.mark.both_databases
@pytest.mark.django_db(transaction=True)
def test_twenty_equal_requests_at_once_make_one_snapshot(api: Api, volume: Volume) -> None:
    barrier, body = Barrier(20), {"volume_id": str(volume.pk)}

    def post(number: int) -> tuple[int, str]:
        try:
            other = Api(api.credential)
            barrier.wait()
            response = other("POST", "/snapshots", body, **{"Idempotency-Key": "same"})
            return response.status_code, response.json().get("id", "")
        finally:
            connections.close_all()

    with ThreadPoolExecutor(20) as pool:
        answers = Counter(pool.map(post, range(20)))
    snapshot = Snapshot.objects.get()
    assert answers.keys() <= {(202, str(snapshot.pk)), (409, "")} and answers[202, str(snapshot.pk)] >= 1
    assert Operation.objects.count() == 1
    again = api("POST", "/snapshots", body, **{"Idempotency-Key": "same"})
    assert again.json()["id"] == str(snapshot.pk)


def test_lists_cost_as_many_queries_as_ever(
    api: Api, volume: Volume, django_assert_max_num_queries: Callable[..., Any]
) -> None:
    for number in range(5):
        snapshot = SnapshotFactory(volume=volume, name=f"s-{number}", creating=number == 4)
        VolumeFactory(project=volume.project, location=volume.location, attached=True)
    SnapshotLockFactory(snapshot__volume=volume)
    Operation.objects.create(kind="verify", snapshot=snapshot)
    for path in ("/snapshots", "/volumes", "/operations", "/locations", "/usage", "/invoices", "/activity"):
        with django_assert_max_num_queries(14):
            api.get(path)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
@pytest.mark.django_db(transaction=True)
def test_the_examples_of_the_reference_run(
    api: Api, volume: Volume, client_for: Callable[..., Client], live_server: Any, settings: Any
) -> None:
    settings.RECYCLE_BIN_DAYS, settings.PORTAL_URL = 7, live_server.url
    taken = api("POST", "/snapshots", {"volume_id": str(volume.pk)}).json()["id"]
    run_active_operations()
    page = client_for(api.credential.user).get(reverse("api:reference")).text
    start, *examples = [html.unescape(text) for text in re.findall(r"<pre[^>]*><code>(.*?)</code>", page, re.DOTALL)]
    assert api.credential.pk.hex in start and len(examples) == 18
    values = {
        "ID": api.credential.pk.hex,
        "SECRET": CREDENTIAL_SECRET,
        "SNAPSHOT": taken,
        "VOLUME": str(volume.pk),
        "OPERATION": str(Operation.objects.get(snapshot=taken).pk),
        "LOCATION": volume.location_id,
        "KIND": "bs_snapshot",
        "SIZE_GB": "50",
        "DAY": (timezone.now() + timedelta(days=3)).date().isoformat(),
    }
    only_status = "curl() { command curl --silent --output /dev/null --write-out '%{http_code}' \"$@\"; }\n"
    for example in examples:
        done = subprocess.run(
            ["bash", "-c", only_status + example], env=os.environ | values, capture_output=True, text=True, check=True
        )
        assert done.stdout in ("200", "202"), example
        run_active_operations()
    assert Snapshot.objects.get(pk=taken).name == "after-upgrade"


def test_each_kind_and_state_has_its_own_values_in_the_schema() -> None:
    objects = Client().get("/api/v1/openapi.json").json()["components"]["schemas"]
    for name, field, choices in [
        ("Volume", "state", Volume.State),
        ("Snapshot", "kind", Kind),
        ("Operation", "kind", Operation.Kind),
        ("Operation", "state", Operation.State),
    ]:
        for each in (name, f"{name}Row"):
            assert objects[each]["properties"][field]["enum"] == choices.values
    assert not {"Kind", "State"} & objects.keys()


def test_every_link_of_the_reference_leads_somewhere(api: Api, client_for: Callable[..., Client]) -> None:
    page = client_for(api.credential.user).get(reverse("api:reference")).text
    ids = set(re.findall(r' id="([^"]+)"', page))
    assert {link for link in re.findall(r'href="#([^"]+)"', page) if link not in ids} == set()
    assert {"Location", "Invoice", "ActivityEntry", "UsageLine"} <= ids
    assert not {"Paging", "VolumeFilters", "NewSnapshot", "SnapshotRow", "SnapshotPage"} & ids
    assert "<code>next</code>" in page
    assert "one of block_storage, bs_snapshot" in page
    assert "`" not in page and "required</strong>" in page
    assert len(page.encode()) < 100_000


def test_the_schema_is_public_and_documents_every_operation_and_error() -> None:
    schema = Client().get("/api/v1/openapi.json").json()
    assert schema["openapi"].startswith("3.1")
    for methods in schema["paths"].values():
        for method, operation in methods.items():
            assert operation["summary"] and operation["description"] and operation["tags"] and operation["security"]
            assert {"401", "422", "500"} <= operation["responses"].keys()
            names = [parameter["name"] for parameter in operation["parameters"]]
            assert ("Idempotency-Key" in names) == (method != "get")
    assert {"Snapshot", "Problem", "NewSnapshot"} <= schema["components"]["schemas"].keys()
    assert UserFactory.build().email not in str(schema)
