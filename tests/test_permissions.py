"""Every URL of the portal in every role responds as permissions.py says, and every URL has a row there."""

import re
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import parse_qsl, urlsplit
from uuid import UUID, uuid4

import pytest
from allauth.mfa.models import Authenticator
from allauth.usersessions.models import UserSession
from django.conf import settings
from django.contrib import admin
from django.contrib.sessions.models import Session
from django.db import transaction
from django.http import HttpResponse
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from billing.models import Invoice, PriceVersion
from cng_portal.accounts.models import Membership, Role
from snapshots.models import Draft
from snapshots.wizard import wizard
from tests.addresses import ADDRESSES
from tests.factories import (
    ApplicationCredentialFactory,
    ApprovalFactory,
    BackupFactory,
    BackupScheduleFactory,
    DraftFactory,
    InvitationFactory,
    MembershipFactory,
    NotificationFactory,
    OperationFactory,
    ProjectFactory,
    SnapshotFactory,
    SnapshotLockFactory,
    UserFactory,
    VMSnapshotFactory,
    VolumeFactory,
)
from tests.permissions import (
    ADMINISTER,
    ADMINISTRATOR,
    FORBIDDEN,
    MEMBER,
    MISSING,
    MODEL_PAGES,
    OK,
    OUT,
    OWNER,
    ROLES,
    SIGN_IN,
    STRANGER,
    TABLE,
    VIEWER,
    WRITTEN,
    Row,
    as_markdown,
)
from tests.snapshots.disks import put_volume, sell_everywhere
from tests.snapshots.drills.records import record_drill

pytestmark = pytest.mark.django_db

PASSWORD = "a password of the tests"
METHODS = ("GET", "POST", "htmx")
ROWS = {row.name: row for rows in TABLE.values() for row in rows}

# The value of each URL parameter. Objects that can belong to somebody else are attributes of `world`.
PARAMETERS: dict[str, Callable[[SimpleNamespace], Any]] = {
    "snapshot_id": lambda world: world.snapshot,
    "operation_id": lambda world: world.operation,
    "drill_id": lambda world: world.drill,
    "disk_id": lambda world: world.snapshot.disks.get(),
    "part": lambda world: 0,
    "volume_id": lambda world: world.volume,
    "vm_id": lambda world: world.volume.vm,
    "schedule_id": lambda world: world.schedule,
    "project_id": lambda world: world.project,
    "approval_id": lambda world: world.approval,
    "notification_id": lambda world: world.notification,
    "draft_id": lambda world: world.draft,
    "step": lambda world: "location",
    "location": lambda world: world.volume.location_id,
    "project": lambda world: world.project.pk.hex,
    "quota_project": lambda world: world.project.pk.hex,
    "type_id": lambda world: "default",
    "slug": lambda world: "billing",
    "key": lambda world: "no-such-key",
    "token": lambda world: "no-such-token",
    "uidb36": lambda world: "0",
    "app_label": lambda world: "accounts",
    "content_type_id": lambda world: 0,
    "object_id": lambda world: world.customer,
    "id": lambda world: world.users[VIEWER],
    "version_id": lambda world: PriceVersion.objects.first(),
}


@pytest.fixture
def world(storage_root: Path) -> SimpleNamespace:
    """One object of each kind, in a project with a viewer, a member and an owner; the stranger owns another project."""
    project = ProjectFactory(customer__postpaid=True)
    snapshot = SnapshotFactory(volume__project=project, volume__attached_stopped=True)
    now = timezone.now()
    users = {
        STRANGER: UserFactory(password=PASSWORD, member_of=ProjectFactory()),
        VIEWER: UserFactory(password=PASSWORD, member_of=project, member_of__role=Role.VIEWER),
        MEMBER: UserFactory(password=PASSWORD, member_of=project, member_of__role=Role.MEMBER),
        OWNER: UserFactory(password=PASSWORD, member_of=project),
        ADMINISTRATOR: UserFactory(password=PASSWORD, admin=True),
    }
    sell_everywhere()
    put_volume(storage_root, snapshot.volume, b"bytes")
    lock = SnapshotLockFactory(snapshot__volume=snapshot.volume)
    sessions = {}
    for role, user in users.items():
        client = Client()
        client.force_login(user)
        sessions[role] = client.session.session_key
    session = UserSession.objects.create(user=users[VIEWER], ip="192.0.2.7", session_key="viewer", user_agent="Firefox")
    Session.objects.create(session_key="viewer", session_data="", expire_date=now + timedelta(days=1))
    return SimpleNamespace(
        users=users,
        sessions=sessions,
        clients={role: Client() for role in ROLES},  # a new one loads the middleware again
        customer=project.customer,
        project=project,
        snapshot=snapshot,
        drill=record_drill(snapshot),
        binned=SnapshotFactory(volume=snapshot.volume, binned=True),
        locked=lock.snapshot,
        lock=lock,
        binned_volume=VolumeFactory(project=snapshot.project, location=snapshot.location, binned=True),
        vm_snapshot=VMSnapshotFactory(vm=snapshot.volume.vm),
        backup=BackupFactory(vm=snapshot.volume.vm),
        schedule=BackupScheduleFactory(vm=snapshot.volume.vm),
        volume=snapshot.volume,
        user=users[VIEWER],
        machine=snapshot.volume.vm,
        operation=OperationFactory(snapshot=snapshot, failed=True),
        session=session,
        credential=ApplicationCredentialFactory(user=users[MEMBER], project=project),
        passkey=Authenticator.objects.create(
            user=UserFactory(), type=Authenticator.Type.WEBAUTHN, data={"name": "Key"}
        ),
        notification=NotificationFactory(user=users[VIEWER]),
        draft=wizard.start(users[OWNER], source=snapshot.volume),
        new_volume=DraftFactory(
            kind=Draft.CREATE_VOLUME, created_by=users[OWNER], customer=project.customer, location=snapshot.location
        ),
        membership=Membership.objects.get(user=users[VIEWER]),
        invitation=InvitationFactory(project=project, invited_by=users[OWNER]),
        approval=ApprovalFactory(project=project),
        other_membership=MembershipFactory(project=project, role=Role.MEMBER),
        invoice=Invoice.objects.create(
            customer=project.customer,
            sequence=1,
            month=now.date().replace(day=1),
            starts_at=now - timedelta(days=30),
            ends_at=now,
            made_at=now,
            customer_number=project.customer.number,
            time_zone="UTC",
            total_micro=0,
            line_count=0,
        ),
    )


# Django's own pages for each model, with the permissions of its ModelAdmin, and redirects of old or unknown URLs
ADMIN_PAGES = {
    f"admin:{model._meta.app_label}_{model._meta.model_name}_{page}": (model, page)
    for model in admin.site._registry
    for page in MODEL_PAGES
}
ADMIN_REST = {"admin:<path:object_id>/", "admin:(?P<url>.*)$"}


def test_every_url_has_a_row_in_the_table() -> None:
    new = ADDRESSES.keys() - ROWS.keys() - ADMIN_PAGES.keys() - ADMIN_REST
    lines = [f'    Row("{name}", "What a person does there", CHANGE, BOTH),' for name in sorted(new)]
    assert not new, "Say in tests/permissions.py who may use these, then run `make permissions`:\n" + "\n".join(lines)
    gone = ROWS.keys() - ADDRESSES.keys()
    assert not gone, f"Take these lines out of tests/permissions.py: {sorted(gone)}"
    unknown = {name for row in ROWS.values() for name in ADDRESSES[row.name] if name not in row.objects | PARAMETERS}
    assert not unknown, f"Say in PARAMETERS of tests/test_permissions.py what these stand for: {sorted(unknown)}"


def test_the_page_of_permissions_is_up_to_date() -> None:
    assert WRITTEN.read_text() == as_markdown(), "docs/permissions.md is stale: run `make permissions`"


def parameters(row: Row, world: SimpleNamespace) -> dict[str, Any]:
    return {
        name: getattr(world, row.objects[name]) if name in row.objects else PARAMETERS[name](world)
        for name in ADDRESSES[row.name]
    }


def url_of(row: Row, world: SimpleNamespace, **others: Any) -> str:
    arguments = parameters(row, world) | others
    kwargs = {name: getattr(value, "pk", value) for name, value in arguments.items()}
    return reverse(row.name, kwargs=kwargs) + row.query.format(**vars(world))


def ask(url: str, role: str, method: str, world: SimpleNamespace) -> HttpResponse:
    """Return the response. The request's changes are rolled back, so that many requests share one world."""
    client = world.clients[role]
    client.cookies.clear()
    if role != OUT:
        client.cookies[settings.SESSION_COOKIE_NAME] = world.sessions[role]
    with transaction.atomic():
        if method == "POST":
            response = client.post(url, dict(parse_qsl(urlsplit(url).query)))
        else:
            response = client.get(url, headers={"HX-Request": "true"} if method == "htmx" else {})
        transaction.set_rollback(True)
    return response


def answer(response: HttpResponse) -> str:
    goal = response.get("HX-Redirect") or response.get("Location") or ""
    if goal.startswith((reverse("account_login"), reverse("admin:login"))):
        return SIGN_IN
    return OK if response.status_code in (200, 204, 302) else str(response.status_code)


@pytest.mark.parametrize("role", ROLES)
def test_every_url_answers_each_role_as_in_the_table(role: str, world: SimpleNamespace) -> None:
    requests = [(row, method) for row in ROWS.values() for method in METHODS]
    answers = {
        f"{row.name}, {method}": answer(ask(url_of(row, world), role, method, world)) for row, method in requests
    }
    assert answers == {f"{row.name}, {method}": row.expected(role, method) for row, method in requests}


def page(response: HttpResponse, *ids: object) -> str:
    """Return the body without what differs between requests."""
    body = re.sub(r"[A-Za-z0-9]{64}", "", response.getvalue().decode(errors="replace"))
    for pk in ids:
        body = body.replace(f"/{pk}/", "/")
    return body


OF_THINGS = [row for row in ROWS.values() if row.audience[STRANGER] == MISSING and ADDRESSES[row.name]]


@pytest.mark.parametrize("method", METHODS)
def test_a_stranger_cannot_distinguish_a_foreign_object_from_a_missing_one(method: str, world: SimpleNamespace) -> None:
    for row in OF_THINGS:
        objects = {name: value.pk for name, value in parameters(row, world).items() if hasattr(value, "pk")}
        for name, pk in objects.items():
            missing = uuid4() if isinstance(pk, UUID) else 10**9
            foreign = ask(url_of(row, world), STRANGER, method, world)
            nothing = ask(url_of(row, world, **{name: missing}), STRANGER, method, world)
            assert foreign.status_code == nothing.status_code, (row.name, name)
            assert page(foreign, pk) == page(nothing, missing), (row.name, name)
            if row.takes(method):
                of_owner = ask(url_of(row, world, **{name: missing}), OWNER, method, world)
                assert answer(of_owner) == MISSING, (row.name, name)


@pytest.mark.parametrize("kind", MODEL_PAGES)
def test_a_page_of_the_support_desk_is_for_administrators_and_follows_its_rules(
    kind: str, world: SimpleNamespace
) -> None:
    request = SimpleNamespace(user=world.users[ADMINISTRATOR])
    expected, answers = {}, {}
    for name, (model, page_kind) in ADMIN_PAGES.items():
        if page_kind != kind:
            continue
        target = model._default_manager.first()
        args = [target.pk if target else "0"] if ADDRESSES[name] else []
        url = reverse(name, args=args)
        row = Row(name, "", ADMINISTER, "GET POST")
        requests = [(role, method) for role in ROLES[:-1] for method in METHODS]
        expected |= {(name, role, method): row.expected(role, method) for role, method in requests}
        if target or not args or kind == "history":
            model_admin = admin.site.get_model_admin(model)
            allowed = getattr(model_admin, f"has_{MODEL_PAGES[kind]}_permission")(request)
            for method in ("GET", "htmx"):
                expected[name, ADMINISTRATOR, method] = OK if allowed else FORBIDDEN
        answers |= {key: answer(ask(url, *key[1:], world)) for key in expected if key[0] == name}
    assert answers == expected
