"""The fuzzer's data: two customers with one of everything, a user in each role, and their sessions."""

import re
import time
from collections import defaultdict
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

from allauth.mfa.models import Authenticator
from allauth.mfa.recovery_codes.internal.auth import RecoveryCodes
from allauth.mfa.totp.internal.auth import TOTP, generate_totp_secret
from allauth.usersessions.models import UserSession
from django.contrib import admin
from django.contrib.sessions.models import Session
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from billing.models import Invoice, ServiceKind
from billing.usage import open_segment
from billing.wallet import grant_credits
from cng_portal.accounts import impersonation, roles
from cng_portal.accounts.models import Membership, Project, Role, User
from cng_portal.accounts.signin import confirmation
from cng_portal.activity import services as activity
from cng_portal.common.names import fold_name
from snapshots import services
from snapshots.models import Draft, Kind
from snapshots.wizard import wizard
from tests.factories import (
    BackupRunFactory,
    BackupScheduleFactory,
    CustomerFactory,
    DiskImageFactory,
    InvitationFactory,
    MembershipFactory,
    NotificationFactory,
    OperationFactory,
    ProjectFactory,
    SnapshotFactory,
    UserFactory,
    VirtualMachineFactory,
    VMSnapshotFactory,
    VolumeFactory,
)
from tests.permissions import ADMINISTRATOR, MEMBER, OUT, OWNER, ROLES, STRANGER, VIEWER
from tests.snapshots.disks import put_volume, sell_everywhere

PASSWORD = "a password of the tests"
MINE, FOREIGN, INPUT = "m1nemark", "f0reignmark", "inj3ctmark"
HOSTILE = "<b>\"'&"
UUIDS = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
# A passkey as a browser registers it, with a public key whose private key nobody has
CREDENTIAL = {
    "id": "aWQtb2YtaXQ",
    "rawId": "aWQtb2YtaXQ",
    "type": "public-key",
    "clientExtensionResults": {},
    "response": {
        "clientDataJSON": "eyJ0eXBlIjoid2ViYXV0aG4uY3JlYXRlIiwiY2hhbGxlbmdlIjoiWTJoaGJHeGxibWRsIiwib3JpZ2luIjoiaHR0cHM6Ly"
        "90ZXN0c2VydmVyIiwiY3Jvc3NPcmlnaW4iOmZhbHNlfQ",
        "attestationObject": "o2NmbXRkbm9uZWdhdHRTdG10oGhhdXRoRGF0YViM69q3JHqY58lN6TBm0kw4r9mgyimONoS0ersRMfzJ8gBBAAAAAAA"
        "AAAAAAAAAAAAAAAAAAAAACGlkLW9mLWl0pQECAyYgASFYIPadHXchsj0Fi9iWDgeV_K2j_RARJfaQLMPfqcv146W9IlggN_dkC3a0TO5GAltj"
        "FyMYYMvw0fnmufuDVi_D6S4qCBo",
    },
}


def create_customer(mark: str, root: Path) -> SimpleNamespace:
    """Create a customer with one of everything. All its texts start with the mark."""

    def text(what: str) -> str:
        return f"{mark}{HOSTILE} {what}"

    now = timezone.now()
    customer = CustomerFactory(name=text("customer"), postpaid=True)
    project = ProjectFactory(customer=customer, name=text("project"))
    owner = UserFactory(email=f"{mark}-owner@example.com", name=text("owner"), password=PASSWORD, member_of=project)
    vm = VirtualMachineFactory(project=project, name=text("vm"), stopped=True)
    volume = VolumeFactory(project=project, location=vm.location, vm=vm, name=text("volume"))
    loose = VolumeFactory(project=project, location=vm.location, name=text("loose"))
    for disk in volume, loose:
        put_volume(root, disk, b"bytes")

    def snapshot(what: str, of: Any = volume, **fields: Any) -> Any:
        name = text(what)
        target = SnapshotFactory(volume=of, name=name, name_key=fold_name(name), **fields)
        target.disks.update(volume_name=text("disk"), damage=text("damage") if what == "damaged" else "")
        return target

    ready, failed = snapshot("ready"), snapshot("failed", failed=True, error=text("error"))
    snapshots = [
        ready,
        snapshot("spare", loose),
        failed,
        snapshot("pending", pending=True),
        snapshot("damaged", damaged=True),
        snapshot("going", deleting=True),
    ]
    name = text("machine")
    config = services.describe_machine(vm, [volume]) | {"name": text("old")}
    of_machine = VMSnapshotFactory(vm=vm, name=name, name_key=fold_name(name), vm_config=config)
    DiskImageFactory(id=uuid4(), snapshot=of_machine, volume=volume, volume_name=text("disk"), size_gb=1)
    backup = VMSnapshotFactory(
        vm=vm, kind=Kind.BACKUP, name=text("backup"), name_key=fold_name(text("backup")), vm_config=config
    )
    for charged in ready, of_machine, backup:
        open_segment(
            resource_id=charged.pk,
            kind=charged.service_kind,
            name=charged.name,
            project=project,
            location=charged.location,
            size_gb=1,
            at=now - timedelta(days=40),
        )
    grant_credits(customer=customer, amount_micro=10**9, reason=text("credits"), key=f"{mark}-1", by=owner, at=now)
    invoice = Invoice.objects.create(
        customer=customer,
        sequence=1,
        month=(now - timedelta(days=31)).date().replace(day=1),
        starts_at=now - timedelta(days=62),
        ends_at=now - timedelta(days=31),
        made_at=now,
        customer_number=customer.number,
        time_zone="UTC",
        total_micro=0,
        line_count=0,
    )
    schedule = BackupScheduleFactory(vm=vm)
    BackupRunFactory(schedule=schedule, snapshot=backup)
    BackupRunFactory(schedule=schedule, failed=True, reason=text("reason"))
    paused = BackupScheduleFactory(vm=VirtualMachineFactory(project=project, name=text("idle")), paused=True)
    activity.record(action="snapshot.rename", actor=owner, target=ready, before={"name": text("before")})
    drafts = [wizard.start(owner, source=volume), wizard.start(owner, source=vm)]
    drafts.append(wizard.start(owner, source=vm, kind=Kind.BACKUP))
    for source in loose, vm:  # with every answer before the review
        answered = wizard.start(owner, source=source)
        Draft.objects.filter(pk=answered.pk).update(name=text("new"))
        drafts.append(answered)
    empty = wizard.start(owner)
    empty.save()
    return SimpleNamespace(
        customer_id=[customer],
        project_id=[project],
        owner=owner,
        vm_id=[vm, paused.vm],
        volume_id=[volume, loose],
        snapshot_id=[*snapshots, of_machine, backup],
        operation_id=[
            OperationFactory(snapshot=failed, capture=True, failed=True, error=text("reason")),
            OperationFactory(snapshot=ready, restore=True, running=True),
        ],
        schedule_id=[schedule, paused],
        invitation_id=[InvitationFactory(project=project, invited_by=owner, email=f"{mark}-guest@example.com")],
        membership_id=[
            MembershipFactory(project=project, user__name=text("colleague"), role=Role.MEMBER),
            Membership.objects.get(user=owner),
        ],
        draft_id=[*drafts, empty],
        pk=[invoice, customer, vm, owner],
        id=[owner],
    )


def create_personal(user: User, mark: str) -> SimpleNamespace:
    """Create what even colleagues can't see: a session, a passkey and a notification."""
    session = UserSession.objects.create(user=user, ip="192.0.2.7", session_key=uuid4().hex, user_agent=mark + HOSTILE)
    Session.objects.create(
        session_key=session.session_key, session_data="", expire_date=timezone.now() + timedelta(days=1)
    )
    passkey = Authenticator(user=user, type=Authenticator.Type.WEBAUTHN)
    passkey.data = {"name": mark + HOSTILE, "credential": CREDENTIAL}
    passkey.save()
    return SimpleNamespace(
        notification_id=[NotificationFactory(user=user, title=mark + HOSTILE, text=mark + HOSTILE, url="/snapshots/")],
        session_id=[session],
        pk=[passkey],
    )


def create_world(root: Path) -> SimpleNamespace:
    """Return `users` and `sessions` by role, `ids` by URL parameter, and `secret`: the IDs that a role must not see."""
    mine, foreign = create_customer(MINE, root), create_customer(FOREIGN, root)
    for kind in ServiceKind:
        if kind != ServiceKind.VM_BACKUP_AUTOMATIC:
            sell_everywhere(kind=kind)
    [project] = mine.project_id
    Project.objects.filter(pk=project.pk).update(snapshot_quota=50)
    users = {
        STRANGER: UserFactory(email="stranger@example.com", member_of=ProjectFactory(name="Elsewhere")),
        VIEWER: UserFactory(email="viewer@example.com", member_of=project, member_of__role=Role.VIEWER),
        MEMBER: UserFactory(email="member@example.com", member_of=project, member_of__role=Role.MEMBER),
        OWNER: mine.owner,
        ADMINISTRATOR: UserFactory(email="administrator@example.com", admin=True),
    }
    ids: dict[str, list[str]] = defaultdict(list)
    for parts in mine, foreign, *(create_personal(user, "own") for user in users.values()):
        for name, objects in vars(parts).items():
            ids[name] += [str(target.pk) for target in objects] if isinstance(objects, list) else []
    TOTP.activate(mine.owner, generate_totp_secret())
    RecoveryCodes.activate(mine.owner)
    for user in users.values():
        user.set_password(PASSWORD)
        user.save()
    ids["token"] = [roles.sign_token(invitation) for invitation in [*mine.invitation_id, *foreign.invitation_id]]
    ids["step"] = sorted({step.slug for steps in wizard.STEPS.values() for step in steps})
    ids["slug"] = ["billing", "restore"]
    ids["app_label"] = sorted({model._meta.app_label for model in admin.site._registry})
    of = {
        mark: {str(target.pk) for objects in vars(parts).values() if isinstance(objects, list) for target in objects}
        for mark, parts in ((MINE, mine), (FOREIGN, foreign))
    }
    both = of[MINE] | of[FOREIGN]
    secret = {role: of[FOREIGN] for role in (VIEWER, MEMBER, OWNER)} | {OUT: both, STRANGER: both}
    return SimpleNamespace(
        users=users,
        ids=dict(ids),
        uuids=sorted({uuid for objects in ids.values() for uuid in objects if UUIDS.fullmatch(uuid)}),
        names=[f"{MINE}{HOSTILE} {what}" for what in ("spare", "machine", "backup", "ready", "loose", "vm", "idle")],
        emails=[user.email for user in users.values()] + [f"{MINE}-guest@example.com", "nobody@example.com"],
        secret=secret,
        sessions={role: list(sessions(role, users)) for role in ROLES},
    )


def sessions(role: str, users: dict[str, User]) -> Iterator[str]:
    """Yield session keys: one without a recent re-authentication, then others with one."""
    client = Client()
    if role == OUT:
        yield ""
        yield ""
        client.post(reverse("account_login"), {"login": users[OWNER].email, "password": PASSWORD})
        assert not client.session.get("_auth_user_id"), "the second factor is asked for"
        yield client.session.session_key
        return
    client.force_login(users[role])
    yield client.session.session_key
    for looks in (False, False, True) if role == ADMINISTRATOR else (False, False):
        client = Client()
        client.force_login(users[role])
        session = client.session
        later = time.time() + 10**6  # a long run takes longer than a re-authentication is valid
        session[confirmation.CONFIRMED_AT] = later
        session["account_authentication_methods"] = [{"method": "password", "at": later, "reauthenticated": True}]
        session["account_authentication_methods_user"] = str(users[role].pk)
        if looks:
            session[impersonation.KEY] = str(users[OWNER].pk)
        session.save()
        yield session.session_key
