"""Every form and every parameter of every address, in every role, with whatever hypothesis thinks of.

The addresses come from the URL configuration; the forms, their fields and the parameters of links from the pages
themselves, so a new page is in it by itself. FUZZ_REQUESTS=20000 asks for so many requests in each role, and prints
what each address was asked and answered; `-k owner` is one role alone.

Three words are looked for in what comes back. MINE is in every text of the customer whose people the roles are, FOREIGN in
every text of another customer, INPUT in what is sent; each is followed by characters that HTML has to escape. So are the
ids of what is another's.
"""

import contextlib
import json
import logging
import os
import re
import time
import traceback
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import parse_qsl, quote, urlencode, urlsplit
from uuid import uuid4

import pytest
from allauth.mfa.models import Authenticator
from allauth.mfa.recovery_codes.internal.auth import RecoveryCodes
from allauth.mfa.totp.internal.auth import TOTP, generate_totp_secret
from allauth.usersessions.models import UserSession
from django.conf import settings as django_settings
from django.contrib import admin
from django.contrib.sessions.models import Session
from django.core import mail
from django.core.signals import got_request_exception
from django.db import transaction
from django.http import HttpResponse
from django.test import Client, RequestFactory
from django.test.client import ClientHandler
from django.urls import NoReverseMatch, Resolver404, URLResolver, get_resolver, resolve, reverse
from django.utils import timezone
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from billing.models import Invoice, ServiceKind
from billing.usage import open_segment
from billing.wallet import grant_credits
from cng_portal.accounts import impersonation, roles
from cng_portal.accounts.models import Membership, Project, Role, User
from cng_portal.accounts.signin import confirmation
from cng_portal.activity import services as activity
from cng_portal.common.names import fold_name
from snapshots import services, wizard
from snapshots.models import Draft, Kind
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
from tests.permissions import ADMINISTRATOR, MEMBER, OUT, OWNER, ROLES, STRANGER, TABLE, VIEWER
from tests.snapshots.disks import put_volume, sell_everywhere

pytestmark = [pytest.mark.django_db, pytest.mark.slow]

LONG = "FUZZ_REQUESTS" in os.environ
REQUESTS = int(os.environ.get("FUZZ_REQUESTS", "160"))
PASSWORD = "a password of the tests"
MINE, FOREIGN, INPUT = "m1nemark", "f0reignmark", "inj3ctmark"
HOSTILE = "<b>\"'&"
UNESCAPED = re.compile(rf"({MINE}|{FOREIGN}|{INPUT})(<|\"|'|&(?!lt;|gt;|amp;|quot;|\#x27;|\#39;))", re.IGNORECASE)
ELSEWHERE = "https://elsewhere.example"
# an attribute by which a browser goes somewhere, or fetches something, that is not ours
LEADING = re.compile(
    r"""\b(?:href|src|action|formaction|poster|data|hx-[a-z-]+)\s*=\s*["']?\s*"""
    r"""(?:(?:https?:)?[/\\]{2}elsewhere|javascript:)[^"'\s>]*""",
    re.IGNORECASE,
)
UUIDS = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
HEADERS_THAT_LEAD = ("Location", "HX-Redirect", "HX-Location", "HX-Push-Url", "HX-Replace-Url")
# Says that the portal is not well, which is no failure of the page.
MAY_BE_UNAVAILABLE = {"/readyz", "/metrics"}

WEIRD = [
    f"{INPUT}{HOSTILE}",
    "",
    " ",
    "0",
    "-1",
    "9" * 30,
    "1e9",
    "NaN",
    "true",
    "null",
    "\x00",
    "a\x00b",
    "\u202e\u0301\u200d",
    "\ud800",
    "x" * 5000,
    "%00%0d%0aSet-Cookie: a=b",
    "a\r\nb",
    "' OR 1=1 --",
    "../../etc/passwd",
    "{{ 7|add:7 }}",
    "=1+1",
    "2026-02-31",
    "2026-11-22T10:00",
    "0001-01-01",
    "9999-12-31",
    "25:61",
    ELSEWHERE,
    "//elsewhere.example",
    "/\\elsewhere.example",
    "https:elsewhere.example",
    "\t//elsewhere.example",
    "javascript:alert(1)",
    "\u0131\u0130\ufb03\ufdfa",
    "[]",
    '{"a": [1]}',
    "²",
]
# Of a passkey as a browser registers it, with the public key of nobody
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
# Of no name in the URL configuration: probes, files, catch-alls, and what a proxy might let through
PATHS = [
    "/healthz",
    "/readyz",
    "/metrics",
    "/static/portal.css",
    "/static/../manage.py",
    "/static/%2e%2e/%2e%2e/etc/passwd",
    "/favicon.ico",
    "/admin/nothing",
    "/admin/accounts/user/x'y/z/",
    "//elsewhere.example/snapshots",
    "//elsewhere.example/%2e%2e",
    "/\\elsewhere.example",
    "/snapshots",
    "/SNAPSHOTS/",
    f"/{INPUT}{HOSTILE}/",
]
# What the code reads of a request without a form
SOURCES = [path for folder in ("cng_portal", "billing", "snapshots") for path in Path(folder).rglob("*.py")]
NAMES_READ = sorted(
    {name for path in SOURCES for name in re.findall(r"\.(?:GET|POST)\.\w+\(\s*\"(\w+)\"", path.read_text())}
)


# --- what there is -----------------------------------------------------------------------------------------------------


def furnish(mark: str, root: Path) -> SimpleNamespace:
    """A customer with one of everything, every text of which begins with the mark."""

    def text(what: str) -> str:
        return f"{mark}{HOSTILE} {what}"

    now = timezone.now()
    customer = CustomerFactory(name=text("customer"), postpaid=True)
    project = ProjectFactory(customer=customer, name=text("project"))
    owner = UserFactory(email=f"{mark}-owner@example.com", name=text("owner"), password=PASSWORD, member_of=project)
    vm = VirtualMachineFactory(project=project, name=text("vm"), stopped=True)
    volume = VolumeFactory(project=project, location=vm.location, vm=vm, name=text("volume"))
    loose = VolumeFactory(project=project, location=vm.location, name=text("loose"))
    for one in volume, loose:
        put_volume(root, one, b"bytes")

    def snapshot(what: str, of: Any = volume, **fields: Any) -> Any:
        name = text(what)
        made = SnapshotFactory(volume=of, name=name, name_key=fold_name(name), **fields)
        made.disks.update(volume_name=text("disk"), damage=text("damage") if what == "damaged" else "")
        return made

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
    for one in ready, of_machine, backup:
        open_segment(
            resource_id=one.pk,
            kind=one.service_kind,
            name=one.name,
            project=project,
            location=one.location,
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
    for source in loose, vm:  # answered to the review
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


def belongings(person: User, mark: str) -> SimpleNamespace:
    """What is one person's alone."""
    session = UserSession.objects.create(
        user=person, ip="192.0.2.7", session_key=uuid4().hex, user_agent=mark + HOSTILE
    )
    Session.objects.create(
        session_key=session.session_key, session_data="", expire_date=timezone.now() + timedelta(days=1)
    )
    passkey = Authenticator(user=person, type=Authenticator.Type.WEBAUTHN)
    passkey.data = {"name": mark + HOSTILE, "credential": CREDENTIAL}
    passkey.save()
    return SimpleNamespace(
        notification_id=[
            NotificationFactory(user=person, title=mark + HOSTILE, text=mark + HOSTILE, url="/snapshots/")
        ],
        session_id=[session],
        pk=[passkey],
    )


@pytest.fixture
def world(storage_root: Path, settings: Any) -> SimpleNamespace:
    """people {role: person}, `ids` by the name of the address's parameter, `secret` {role: ids that are not theirs}."""
    settings.ACTS_PER_HOUR = dict.fromkeys(settings.ACTS_PER_HOUR, 1)  # the second one of a kind is refused
    settings.ACCOUNT_RATE_LIMITS = {key: "3/m/ip" for key in settings.ACCOUNT_RATE_LIMITS}
    mine, foreign = furnish(MINE, storage_root), furnish(FOREIGN, storage_root)
    for kind in ServiceKind:
        if kind != ServiceKind.VM_BACKUP_AUTOMATIC:
            sell_everywhere(kind=kind)
    [project] = mine.project_id
    Project.objects.filter(pk=project.pk).update(snapshot_quota=50)
    people = {
        STRANGER: UserFactory(email="stranger@example.com", member_of=ProjectFactory(name="Elsewhere")),
        VIEWER: UserFactory(email="viewer@example.com", member_of=project, member_of__role=Role.VIEWER),
        MEMBER: UserFactory(email="member@example.com", member_of=project, member_of__role=Role.MEMBER),
        OWNER: mine.owner,
        ADMINISTRATOR: UserFactory(email="administrator@example.com", admin=True),
    }
    ids: dict[str, list[str]] = defaultdict(list)
    for things in mine, foreign, *(belongings(person, "own") for person in people.values()):
        for name, found in vars(things).items():
            ids[name] += [str(one.pk) for one in found] if isinstance(found, list) else []
    TOTP.activate(mine.owner, generate_totp_secret())
    RecoveryCodes.activate(mine.owner)
    for person in people.values():
        person.set_password(PASSWORD)
        person.save()
    ids["token"] = [roles.token_of(one) for one in [*mine.invitation_id, *foreign.invitation_id]]
    ids["step"] = sorted({one.slug for steps in wizard.STEPS.values() for one in steps})
    ids["slug"] = ["billing", "restore"]
    ids["app_label"] = sorted({model._meta.app_label for model in admin.site._registry})
    of = {
        mark: {str(one.pk) for found in vars(things).values() if isinstance(found, list) for one in found}
        for mark, things in ((MINE, mine), (FOREIGN, foreign))
    }
    both = of[MINE] | of[FOREIGN]
    secret = {role: of[FOREIGN] for role in (VIEWER, MEMBER, OWNER)} | {OUT: both, STRANGER: both}
    return SimpleNamespace(
        people=people,
        ids=dict(ids),
        uuids=sorted({one for found in ids.values() for one in found if UUIDS.fullmatch(one)}),
        names=[f"{MINE}{HOSTILE} {what}" for what in ("spare", "machine", "backup", "ready", "loose", "vm", "idle")],
        emails=[person.email for person in people.values()] + [f"{MINE}-guest@example.com", "nobody@example.com"],
        secret=secret,
        sessions={role: list(sessions(role, people)) for role in ROLES},
    )


def sessions(role: str, people: dict[str, User]) -> Iterator[str]:
    """Keys: most of them of who has lately confirmed who they are, one of who has not."""
    client = Client()
    if role == OUT:
        yield ""
        yield ""
        client.post(reverse("account_login"), {"login": people[OWNER].email, "password": PASSWORD})
        assert not client.session.get("_auth_user_id"), "the second factor is asked for"
        yield client.session.session_key
        return
    client.force_login(people[role])
    yield client.session.session_key
    for looks in (False, False, True) if role == ADMINISTRATOR else (False, False):
        client = Client()
        client.force_login(people[role])
        session = client.session
        later = time.time() + 10**6  # a long run is longer than the confirmation lasts
        session[confirmation.CONFIRMED] = later
        session["account_authentication_methods"] = [{"method": "password", "at": later, "reauthenticated": True}]
        session["account_authentication_methods_user"] = str(people[role].pk)
        if looks:
            session[impersonation.KEY] = str(people[OWNER].pk)
        session.save()
        yield session.session_key


# --- what can be asked -------------------------------------------------------------------------------------------------


@dataclass
class Form:
    """Fields by name, with the values that the page offers for them."""

    fields: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))


class Reader(HTMLParser):
    """The forms and links of a page: (address, Form)."""

    def __init__(self, here: str) -> None:
        super().__init__()
        self.here, self.found = here, [(here, Form())]
        self.form: Form | None = None
        self.by_id: dict[str, Form] = defaultdict(Form)
        self.select = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        if tag == "form":
            self.form = self.by_id[given["id"]] if given.get("id") else Form()
            self.found.append((urlsplit(given.get("action", "")).path or self.here, self.form))
        for name in "hx-post", "hx-get", "hx-delete", "href", "formaction", "action":
            if given.get(name):
                address = urlsplit(given[name])
                if name in ("formaction", "hx-post") and self.form and not address.query:
                    self.found.append((address.path or self.here, self.form))
                elif not address.netloc:
                    link = Form()
                    for key, value in parse_qsl(address.query, keep_blank_values=True):
                        link.fields[key].append(value)
                    self.found.append((address.path or self.here, link))
        name = given.get("name") or (self.select if tag == "option" else "")
        if tag == "select":
            self.select = name
        if name and tag in ("input", "select", "textarea", "button", "option") and name != "csrfmiddlewaretoken":
            form = self.by_id[given["form"]] if given.get("form") else self.form or self.found[0][1]
            form.fields[name].append(given.get("value", ""))

    def handle_endtag(self, tag: str) -> None:
        if tag == "form":
            self.form = None
        elif tag == "select":
            self.select = ""


def patterns(
    resolver: Any, namespace: str = "", above: dict[str, str] | None = None
) -> Iterator[tuple[str, dict[str, str]]]:
    """(name, {parameter: kind of its converter}) of every address."""
    for pattern in resolver.url_patterns:
        converters = getattr(pattern.pattern, "converters", {})
        groups = {
            name: type(converters[name]).__name__ if name in converters else ""
            for name in pattern.pattern.regex.groupindex
        }
        parameters = (above or {}) | groups
        if isinstance(pattern, URLResolver):
            inside = f"{namespace}{pattern.namespace}:" if pattern.namespace else namespace
            yield from patterns(pattern, inside, parameters)
        elif pattern.name:
            yield f"{namespace}{pattern.name}", parameters


PATTERNS = sorted(patterns(get_resolver()), key=str)
ADMIN_MODELS = {f"admin:{m._meta.app_label}_{m._meta.model_name}_": m for m in admin.site._registry}


def learn(role: str, world: SimpleNamespace) -> dict[str, list[Form]]:
    """{name of an address: forms that lead there}, as signed out and as an owner, and an administrator finds them."""
    learned: dict[str, list[Form]] = defaultdict(list)
    for who in (OUT, OWNER, ADMINISTRATOR) if role == ADMINISTRATOR else (OUT, OWNER):
        session = world.sessions[who][min(1, len(world.sessions[who]) - 1)]
        for name, parameters in PATTERNS:
            if name.startswith("admin:") == (who == ADMINISTRATOR):
                pages = 0
                for url in list(addresses(name, parameters, world))[:12]:
                    response = ask(session, {"url": url})
                    if response.status_code == 200 and "html" in response.get("Content-Type", ""):
                        read(url, response.getvalue().decode(), learned)
                        pages += 1
                    if pages == 3:
                        break
    return {name: forms[:40] for name, forms in learned.items()}


def addresses(name: str, parameters: dict[str, str], world: SimpleNamespace) -> Iterator[str]:
    for one in range(12) if parameters else range(1):
        kwargs = {}
        for parameter in parameters:
            real = ids_for(name, parameter, world.ids) or ["0"]
            # all steps of the drafts that are answered, and the other things one after the other
            kwargs[parameter] = real[one % len(real)] if parameter != "draft_id" else real[one % 5]
        with contextlib.suppress(NoReverseMatch):
            yield reverse(name, kwargs=kwargs)


def ids_for(name: str, parameter: str, ids: dict[str, list[str]]) -> list[str]:
    for prefix, model in ADMIN_MODELS.items():
        if parameter == "object_id" and name.startswith(prefix):
            return [str(pk) for pk in model._default_manager.values_list("pk", flat=True)[:20]]
    found = ids.get(parameter, [])
    if dict(PATTERNS)[name][parameter] == "IntConverter":
        return [one for one in found if one.isdigit()]
    return found


def read(url: str, body: str, learned: dict[str, list[Form]]) -> None:
    reader = Reader(url)
    reader.feed(body)
    for address, form in reader.found:
        with contextlib.suppress(Resolver404):
            name = resolve(address).view_name
            if name and form.fields and form not in learned[name]:
                learned[name].append(form)


def requests_for(
    role: str, world: SimpleNamespace, learned: dict[str, list[Form]]
) -> st.SearchStrategy[dict[str, Any]]:
    every_id = sorted({one for found in world.ids.values() for one in found})
    real_ids = {(name, one): ids_for(name, one, world.ids) for name, parameters in PATTERNS for one in parameters}
    weird, texts, ids = st.sampled_from(WEIRD), st.text(max_size=30), st.sampled_from(every_id)
    anything = st.one_of(weird, ids, texts)
    known = {
        **dict.fromkeys(("login", "email"), st.sampled_from(world.emails)),
        **dict.fromkeys(("password", "oldpassword"), st.just(PASSWORD)),
        **dict.fromkeys(("password1", "password2"), st.just("another passw0rd")),
        "confirmation": st.sampled_from(world.names),
        "credential": st.sampled_from(
            [json.dumps(CREDENTIAL), "{}", "[]", "1", '{"id": 1}', '{"response": {"a": []}}']
        ),
        "next": st.one_of(weird, st.just("/volumes/")),
    }
    typed = st.one_of(st.sampled_from([*world.names, "web", "1", "10", "0.4", "2026-11-30", "02:00"]), weird, texts)
    names = sorted(
        {name for forms in learned.values() for form in forms for name in form.fields} | {*NAMES_READ, "next"}
    )
    weird_keys = ["fold", "__proto__", "id__in", "name__regex", INPUT + HOSTILE, "_popup", "_to_field", "_save", "e"]
    keys = st.sampled_from(names + weird_keys)
    in_header = st.sampled_from([ELSEWHERE, f"{INPUT}{HOSTILE}", "x" * 3000, "\xff\xfe", "http://testserver/volumes/"])
    session = st.sampled_from(world.sessions[role])

    # most of the addresses are the support desk's, which is the administrator's alone
    desk = [one for one in PATTERNS if one[0].startswith("admin:")]
    portal = [one for one in PATTERNS if one not in desk]
    weighted = portal + desk if role == ADMINISTRATOR else portal * 8 + desk
    with_form = [one for one in weighted if one[0] in learned]
    pattern = st.one_of(st.sampled_from(weighted), st.sampled_from(with_form))
    taken = {row.name: row.methods.split() for rows in TABLE.values() for row in rows}
    anyhow = st.sampled_from(["GET", "POST"] * 4 + ["HEAD", "PUT", "DELETE", "PATCH", "OPTIONS"])
    how_sent = st.sampled_from(["form"] * 12 + ["multipart", "json", "torn"])
    tail = st.sampled_from([""] * 30 + ["x", "/", "%0a", "%00", "\u0131"])
    dice = st.integers(0, 19)

    @st.composite
    def request(draw: st.DrawFn) -> dict[str, Any]:
        name, data, forms = "", [], []
        if draw(dice):
            name, parameters = draw(pattern)
            kwargs = {}
            for parameter, converter in parameters.items():
                real = real_ids[name, parameter]
                if real and draw(dice) > 1:
                    kwargs[parameter] = draw(st.sampled_from(real))
                elif converter == "UUIDConverter":
                    kwargs[parameter] = draw(st.sampled_from([*world.uuids, str(uuid4())]))
                elif converter == "IntConverter":
                    kwargs[parameter] = draw(st.sampled_from([0, 1, 2**31, 2**63, 2**70]))
                else:
                    kwargs[parameter] = draw(anything)
            try:
                url = reverse(name, kwargs=kwargs) + draw(tail)
            except (NoReverseMatch, UnicodeEncodeError):
                name, url = "", "/" + quote(str(kwargs), errors="replace")
            forms = learned.get(name, [])
        else:
            url = draw(st.one_of(st.sampled_from(PATHS), texts.map(lambda text: f"/{text}")))
        if forms:
            for key, values in draw(st.sampled_from(forms)).fields.items():
                roll = draw(dice)
                if roll > 17:
                    continue
                if roll > 13:
                    data.append((key, draw(anything)))
                elif key in known:
                    data.append((key, draw(known[key])))
                else:
                    offered = draw(st.sampled_from(values))
                    data.append((key, offered or draw(typed)))
        if not draw(st.integers(0, 3)):
            data += [(key, draw(anything)) for key in draw(st.lists(keys, max_size=4))]
        method = draw(st.sampled_from(taken.get(name, ["GET", "POST"]))) if draw(dice) > 2 else draw(anyhow)
        wanted = {"name": name, "url": url, "data": data, "method": method, "session": draw(session)}
        if draw(st.booleans()):
            htmx = {"HX-Request": "true"}
            for header in "HX-Current-URL", "HX-Target", "HX-Trigger", "HX-Trigger-Name", "HX-Prompt":
                if not draw(st.integers(0, 5)):
                    htmx[header] = draw(in_header)
            roll = draw(dice)
            if roll < 2:
                htmx["HX-Boosted" if roll else "HX-History-Restore-Request"] = "true"
            wanted["headers"] = htmx
        if not draw(st.integers(0, 4)):
            header = draw(
                st.sampled_from(
                    ["Referer", "User-Agent", "Accept-Language", "X-Forwarded-For", "Host", "Cookie", "Range"]
                )
            )
            wanted.setdefault("headers", {})[header] = draw(in_header)
        if wanted["method"] != "GET":
            wanted["sent"] = draw(how_sent)
        if not draw(dice):
            wanted["times"] = 5  # a double click, and the limits of what may be tried how often
        return wanted

    return request()


# --- what must not happen ----------------------------------------------------------------------------------------------


class Asker(RequestFactory):
    """Asks as a proxy does, and answers as fast as it can: without django.test.Client's copies of every context."""

    def __init__(self) -> None:
        super().__init__()
        self.handler = ClientHandler(enforce_csrf_checks=False)

    def request(self, **environ: Any) -> HttpResponse:
        return self.handler(self._base_environ(**environ))


asker = Asker()


def ask(session: str, wanted: dict[str, Any]) -> HttpResponse:
    asker.cookies.clear()
    if session:
        asker.cookies[django_settings.SESSION_COOKIE_NAME] = session
    method, path, data = wanted.get("method", "GET"), wanted["url"], wanted.get("data", [])
    headers = dict(wanted.get("headers", {}))
    environ: dict[str, Any] = {}
    if "Cookie" in headers:
        environ["HTTP_COOKIE"] = f"sessionid={headers.pop('Cookie')}; messages=x; csrftoken={INPUT}{HOSTILE}"
    if path.startswith("//") or "\\" in path:  # a browser's own idea of them never reaches the portal
        environ["PATH_INFO"] = path.encode(errors="replace").decode("latin-1")
    query = urlencode(data, errors="replace")
    if method in ("GET", "HEAD"):
        return asker.generic(method, path, headers=headers, QUERY_STRING=query, **environ)
    body, kind = query.encode(), "application/x-www-form-urlencoded"
    match wanted.get("sent"):
        case "multipart":
            kind = "multipart/form-data; boundary=edge"
            body = b"".join(
                b'--edge\r\nContent-Disposition: form-data; name="%s"%s\r\n\r\n%s\r\n'
                % (
                    key.encode(errors="replace"),
                    b'; filename="../../x<b>.img"' if index == 2 else b"",
                    value.encode(errors="replace"),
                )
                for index, (key, value) in enumerate(data)
            )
            body += b"--edge--\r\n"
        case "json":
            body, kind = b'{"a": [' + body, "application/json"
        case "torn":
            body, kind = b"--edge\r\nContent-Disposition: form-data; name=" + body, "multipart/form-data; boundary=edge"
    return asker.generic(method, path, body, kind, headers=headers, **environ)


def goal_of(response: HttpResponse) -> str:
    """Where a browser goes next, if that is a page of ours."""
    goal = response.get("HX-Redirect") or response.get("Location") or ""
    parts = urlsplit(goal)
    return goal if goal and not parts.netloc and parts.path.startswith("/") else ""


def problems(wanted: dict[str, Any], response: HttpResponse, sent: str, marks: Any, ids: set[str]) -> Iterator[str]:
    if response.status_code >= 500 and not (response.status_code == 503 and wanted["url"] in MAY_BE_UNAVAILABLE):
        yield f"answered {response.status_code}"
    for header in HEADERS_THAT_LEAD:
        goal = response.get(header, "")
        host = urlsplit(goal.strip().replace("\\", "/")).netloc
        if host not in ("", "testserver") or goal.strip().lower().startswith("javascript:"):
            yield f"{header} leads to {goal}"
    kind = response.get("Content-Type", "")
    if not kind.startswith(("text/", "application/json")):
        return
    body = response.getvalue().decode(errors="replace")
    if wanted.get("method") == "HEAD" and body:
        yield "answers HEAD with a body"
    if "html" in kind:
        if found := UNESCAPED.search(body):
            yield f"not escaped: {body[max(0, found.start() - 80) : found.end() + 40]}"
        if found := LEADING.search(body):
            yield f"a link elsewhere: {found[0]}"
    small = body.lower()
    for mark in marks:
        place = small.find(mark)
        if place >= 0 and mark not in sent:
            yield f"shows what is not theirs: {body[max(0, place - 80) : place + 60]}"
    if shown := [one for one in ids.intersection(UUIDS.findall(body)) if one not in sent]:
        yield f"shows the id of what is not theirs: {shown[0]}"


@pytest.mark.parametrize("role", ROLES)
def test_whatever_is_sent_nothing_breaks_leaks_or_leads_away(
    role: str, world: SimpleNamespace, request: pytest.FixtureRequest
) -> None:
    request.addfinalizer(lambda: logging.disable(logging.NOTSET))
    logging.disable(logging.CRITICAL)
    raised: list[str] = []

    def remember(**kwargs: Any) -> None:
        raised.append(traceback.format_exc(limit=-12, chain=False))

    got_request_exception.connect(remember)
    request.addfinalizer(lambda: got_request_exception.disconnect(remember))
    learned = learn(role, world)
    assert len(learned) > 40, "the pages have no forms and links any more"
    assert not raised, raised[0]
    statuses: Counter[int] = Counter()
    by_address: dict[str, Counter[int]] = defaultdict(Counter)
    found: dict[tuple[str, str], str] = {}
    looking = world.sessions[ADMINISTRATOR][-1]

    def check(wanted: dict[str, Any], response: HttpResponse, sent: str) -> None:
        marks: tuple[str, ...] = (MINE, FOREIGN) if role in (OUT, STRANGER) else (FOREIGN,)
        ids = world.secret.get(role, set())
        if role == ADMINISTRATOR:  # sees everybody's in Django admin, and looks at the portal with one person's eyes
            eyes = wanted.get("session") == looking and not wanted["url"].startswith("/admin/")
            marks, ids = ((FOREIGN,), world.secret[OWNER]) if eyes else ((), set())
        if "/invitations/" in sent:  # whose link opens the project
            marks, ids = (), set()
        for problem in problems(wanted, response, sent, marks, ids):
            key = (wanted["name"], problem[:30])
            if key not in found:
                found[key] = f"{role}: {problem}\n{wanted}\n{''.join(raised)}"
                print(f"\n{found[key]}", flush=True)
        raised.clear()

    @settings(
        max_examples=min(1000, REQUESTS // 4) if LONG else REQUESTS // 2,
        derandomize=not LONG,  # the same in every `make test`, others in every long run
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.lists(requests_for(role, world, learned), min_size=1, max_size=4))
    def fuzz(sequence: list[dict[str, Any]]) -> None:
        with transaction.atomic():
            sent = ""
            for wanted in sequence:
                sent += (urlencode(wanted["data"], errors="replace") + str(wanted)).lower()
                for _again in range(wanted.get("times", 1)):
                    response = ask(wanted["session"], wanted)
                    statuses[response.status_code] += 1
                    by_address[wanted["name"]][response.status_code] += 1
                    check(wanted, response, sent)
                if goal := goal_of(response):
                    path, _, query = goal.partition("?")
                    then = {"name": f"after {wanted['name']}", "url": path, "data": parse_qsl(query)}
                    then["session"] = wanted["session"]
                    check(then, ask(wanted["session"], then), sent)
            transaction.set_rollback(True)
            mail.outbox.clear()

    began = time.monotonic()
    fuzz()
    weighty = {name for name, _parameters in PATTERNS if role == ADMINISTRATOR or not name.startswith("admin:")}
    # chance may pass an address by
    while LONG and statuses.total() < REQUESTS * (1.5 if weighty - by_address.keys() else 1):
        spent = f"{time.monotonic() - began:.0f} s, {time.process_time():.0f} s of CPU"
        print(f"{role}: {statuses.total()} requests in {spent}", flush=True)
        fuzz()
    print(f"\n{role}: {statuses.total()} requests, {dict(sorted(statuses.items()))}")
    if LONG:
        for name, answers in sorted(by_address.items()):
            print(f"  {name or '(no name)'}: {answers.total()} {dict(sorted(answers.items()))}")
        assert REQUESTS < 10_000 or weighty <= by_address.keys(), f"never asked: {weighty - by_address.keys()}"
    assert not found, "\n\n".join(found.values())
    assert statuses[200] > REQUESTS / 40, "almost nothing was answered with a page"
