"""Every form and every parameter of every address, in every role, with whatever hypothesis thinks of.

The addresses come from the URL configuration; the forms, their fields and the parameters of links from the pages
themselves, so a new page is in it by itself. FUZZ_REQUESTS=20000 asks for so many requests in each role.

Three words are looked for in what comes back. MINE is in every text of the customer whose people the roles are, FOREIGN in
every text of another customer, INPUT in what is sent; each is followed by characters that HTML has to escape.
"""

import contextlib
import logging
import os
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit
from uuid import uuid4

import pytest
from django.conf import settings as django_settings
from django.contrib import admin
from django.contrib.contenttypes.models import ContentType
from django.db import transaction
from django.http import HttpResponse
from django.test import Client
from django.urls import NoReverseMatch, Resolver404, URLResolver, get_resolver, resolve, reverse
from django.utils import timezone
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from billing import services as billing
from billing.models import Invoice, ServiceKind
from cng_portal.accounts.models import Project, Role
from snapshots import wizard
from snapshots.models import Kind, name_key
from tests.factories import (
    CustomerFactory,
    DiskImageFactory,
    NoticeFactory,
    OperationFactory,
    ProjectFactory,
    SnapshotFactory,
    UserFactory,
    VirtualMachineFactory,
    VMSnapshotFactory,
    VolumeFactory,
)
from tests.snapshots.disks import put_volume, sell_everywhere

pytestmark = pytest.mark.django_db

LONG = "FUZZ_REQUESTS" in os.environ
REQUESTS = int(os.environ.get("FUZZ_REQUESTS", "160"))
MINE, FOREIGN, INPUT = "m1nemark", "f0reignmark", "inj3ctmark"
HOSTILE = "<b>\"'&"
UNESCAPED = re.compile(rf"({MINE}|{FOREIGN}|{INPUT})(<|\"|'|&(?!lt;|gt;|amp;|quot;|\#x27;|\#39;))", re.IGNORECASE)
OUT, STRANGER, VIEWER, MEMBER, OWNER, ADMINISTRATOR = ROLES = (
    "signed out",
    "stranger",
    "viewer",
    "member",
    "owner",
    "administrator",
)
HEADERS_THAT_LEAD = ("Location", "HX-Redirect", "HX-Location", "HX-Push-Url", "HX-Replace-Url")
ELSEWHERE = "https://elsewhere.example"
# Says that the portal is not well, which is no failure of the page.
MAY_BE_UNAVAILABLE = {"readyz", "ready"}

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
    "\ud800".encode("utf-16", "surrogatepass").decode("utf-16", "replace"),
    "x" * 5000,
    "%00%0d%0aSet-Cookie: a=b",
    "a\r\nb",
    "' OR 1=1 --",
    "../../etc/passwd",
    "{{ 7|add:7 }}",
    "2026-02-31",
    "2026-11-22T10:00",
    "0001-01-01",
    "9999-12-31",
    "25:61",
    ELSEWHERE,
    "//elsewhere.example",
    "/\\elsewhere.example",
    "javascript:alert(1)",
    "\u0131\u0130\ufb03\ufdfa",
]


# --- what there is -----------------------------------------------------------------------------------------------------


def furnish(mark: str, root: Path) -> SimpleNamespace:
    """A customer with one of everything, every text of which begins with the mark."""

    def text(what: str) -> str:
        return f"{mark}{HOSTILE} {what}"

    now = timezone.now()
    customer = CustomerFactory(name=text("customer"), postpaid=True)
    project = ProjectFactory(customer=customer, name=text("project"))
    owner = UserFactory(email=f"{mark}-owner@example.com", name=text("owner"), member_of=project)
    vm = VirtualMachineFactory(project=project, name=text("vm"), stopped=True)
    volume = VolumeFactory(project=project, location=vm.location, vm=vm, name=text("volume"))
    loose = VolumeFactory(project=project, location=vm.location, name=text("loose"))
    for one in volume, loose:
        put_volume(root, one, b"bytes")

    def snapshot(what: str, **fields: Any) -> Any:
        name = text(what)
        made = SnapshotFactory(volume=volume, name=name, name_key=name_key(name), **fields)
        made.disks.update(volume_name=text("disk"), damage=text("damage") if what == "damaged" else "")
        return made

    ready, failed = snapshot("ready"), snapshot("failed", failed=True, error=text("error"))
    snapshots = [
        ready,
        failed,
        snapshot("pending", pending=True),
        snapshot("damaged"),
        snapshot("going", deleting=True),
    ]
    name = text("machine")
    of_machine = VMSnapshotFactory(vm=vm, name=name, name_key=name_key(name), vm_config={"name": text("old")})
    DiskImageFactory(id=uuid4(), snapshot=of_machine, volume=volume, volume_name=text("disk"), size_gb=1)
    backup = VMSnapshotFactory(vm=vm, kind=Kind.BACKUP, name=text("backup"), name_key=name_key(text("backup")))
    for one in ready, of_machine, backup:
        billing.open_segment(
            resource_id=one.pk,
            kind=one.service_kind,
            name=one.name,
            project=project,
            location=one.location,
            size_gb=1,
            at=now - timedelta(days=40),
        )
    billing.grant_credits(
        customer=customer, amount_micro=10**9, reason=text("credits"), key=f"{mark}-1", by=owner, at=now
    )
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
    return SimpleNamespace(
        customer=customer,
        project=project,
        owner=owner,
        vm=vm,
        volumes=[volume, loose],
        snapshots=[*snapshots, of_machine, backup],
        operations=[
            OperationFactory(snapshot=failed, capture=True, failed=True, error=text("reason")),
            OperationFactory(snapshot=ready, restore=True, running=True),
        ],
        notice=NoticeFactory(user=owner, title=text("notice"), text=text("told"), url="/snapshots/"),
        drafts=[wizard.start(owner, source=volume), wizard.start(owner, source=vm)],
        invoice=invoice,
    )


def ids_of(things: SimpleNamespace) -> list[str]:
    found = []
    for value in vars(things).values():
        found += [str(one.pk) for one in (value if isinstance(value, list) else [value])]
    return found


@pytest.fixture
def people(storage_root: Path) -> dict[str, Any]:
    """{role: person}; `ids` are of what is theirs and of what is not."""
    mine = furnish(MINE, storage_root)
    foreign = furnish(FOREIGN, storage_root)
    for kind in ServiceKind:
        if kind != ServiceKind.VM_BACKUP_AUTOMATIC:
            sell_everywhere(kind=kind)
    found = {
        OUT: None,
        STRANGER: UserFactory(email="stranger@example.com", member_of=ProjectFactory(name="Elsewhere")),
        VIEWER: UserFactory(email="viewer@example.com", member_of=mine.project, member_of__role=Role.VIEWER),
        MEMBER: UserFactory(email="member@example.com", member_of=mine.project, member_of__role=Role.MEMBER),
        OWNER: mine.owner,
        ADMINISTRATOR: UserFactory(email="administrator@example.com", admin=True),
    }
    Project.objects.filter(pk=mine.project.pk).update(snapshot_quota=50)
    return found | {"ids": [*ids_of(mine), *ids_of(foreign), str(ContentType.objects.first().pk)]}


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
        self.select = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        for name in "action", "hx-post", "hx-get", "hx-delete", "href", "formaction":
            if given.get(name):
                address = urlsplit(given[name])
                form = Form()
                for key, value in parse_qsl(address.query, keep_blank_values=True):
                    form.fields[key].append(value)
                if not address.netloc:
                    self.found.append((address.path or self.here, form))
                    if tag == "form" and name == "action":
                        self.form = form
        if tag == "form" and not given.get("action"):
            self.form = self.found[0][1]
        name = given.get("name") or (self.select if tag == "option" else "")
        if tag == "select":
            self.select = name
        if name and tag in ("input", "select", "textarea", "button", "option") and name != "csrfmiddlewaretoken":
            for form in {id(one): one for one in (self.form or self.found[0][1], self.found[0][1])}.values():
                form.fields[name].append(given.get("value", ""))

    def handle_endtag(self, tag: str) -> None:
        if tag == "form":
            self.form = None
        elif tag == "select":
            self.select = ""


def patterns(resolver: Any, namespace: str = "") -> Iterator[tuple[str, dict[str, str]]]:
    """(name, {parameter: kind of its converter}) of every address."""
    for pattern in resolver.url_patterns:
        if isinstance(pattern, URLResolver):
            yield from patterns(pattern, f"{namespace}{pattern.namespace}:" if pattern.namespace else namespace)
        elif pattern.name:
            groups = pattern.pattern.regex.groupindex
            converters = getattr(pattern.pattern, "converters", {})
            yield (
                f"{namespace}{pattern.name}",
                {name: type(converters[name]).__name__ if name in converters else "" for name in groups},
            )


PATTERNS = sorted(patterns(get_resolver()), key=str)


def learn(people: dict[str, Any]) -> dict[str, list[Form]]:
    """{name of an address: forms that lead there}, as an owner and an administrator find them."""
    learned: dict[str, list[Form]] = defaultdict(list)
    for role in OWNER, ADMINISTRATOR:
        client = Client(raise_request_exception=False)
        client.force_login(people[role])
        for name, parameters in PATTERNS:
            if name.startswith("admin:") == (role == ADMINISTRATOR):
                for url in addresses(name, parameters, people["ids"]):
                    response = client.get(url)
                    if response.status_code == 200 and "html" in response.get("Content-Type", ""):
                        read(url, response.getvalue().decode(), learned)
                        break
    return {name: forms[:40] for name, forms in learned.items()}


def addresses(name: str, parameters: dict[str, str], ids: list[str]) -> Iterator[str]:
    pages = {f"admin:{m._meta.app_label}_{m._meta.model_name}_change": m for m in admin.site._registry}
    if name in pages:
        ids = [str(pk) for pk in pages[name]._default_manager.values_list("pk", flat=True)[:1]]
    elif name.startswith("admin:") and parameters:
        return
    for one in ids if parameters else [""]:
        with contextlib.suppress(NoReverseMatch):
            yield reverse(name, kwargs=dict.fromkeys(parameters, one))
    for step in (one.slug for steps in wizard.STEPS.values() for one in steps) if "step" in parameters else ():
        for one in ids:
            yield reverse(name, kwargs={"draft_id": one, "step": step})


def read(url: str, body: str, learned: dict[str, list[Form]]) -> None:
    reader = Reader(url)
    reader.feed(body)
    for address, form in reader.found:
        with contextlib.suppress(Resolver404):
            name = resolve(address).view_name
            if name and form.fields:
                learned[name].append(form)


def requests_for(role: str, ids: list[str], learned: dict[str, list[Form]]) -> st.SearchStrategy[dict[str, Any]]:
    anything = st.one_of(st.sampled_from(WEIRD), st.sampled_from(ids), st.text(max_size=30))
    names = sorted({name for forms in learned.values() for form in forms for name in form.fields} | {"next", "q"})
    weird_keys = ["fold", "__proto__", "id__in", "name__regex", "password", INPUT + HOSTILE, "_popup", "_to_field"]

    # most of the addresses are the support desk's, which is the administrator's alone
    desk = [one for one in PATTERNS if one[0].startswith("admin:")]
    portal = [one for one in PATTERNS if one not in desk]
    weighted = portal + desk if role == ADMINISTRATOR else portal * 8 + desk
    real = [one for one in weighted if one[0] in learned] or weighted

    @st.composite
    def request(draw: st.DrawFn) -> dict[str, Any]:
        name, parameters = draw(st.one_of(st.sampled_from(weighted), st.sampled_from(real)))
        kwargs = {}
        for parameter, converter in parameters.items():
            if converter == "UUIDConverter":
                kwargs[parameter] = draw(st.sampled_from([*ids, *ids, str(uuid4())]))
            elif converter == "IntConverter":
                kwargs[parameter] = draw(st.one_of(st.integers(0, 2**70), st.just(1)))
            else:
                steps = ["location", "project", "volume", "instance", "name", "review", "billing", "accounts", "done"]
                kwargs[parameter] = draw(st.one_of(st.sampled_from(ids + steps), anything))
        data: list[tuple[str, str]] = []
        if forms := learned.get(name):
            form = draw(st.sampled_from(forms))
            for key, values in form.fields.items():
                how = draw(st.integers(0, 9))
                if how < 7 and values:
                    data.append((key, draw(st.sampled_from(values))))
                elif how < 9:
                    data.append((key, draw(anything)))
        if draw(st.integers(0, 2)) == 0:
            for key in draw(st.lists(st.sampled_from(names + weird_keys), max_size=4)):
                data.append((key, draw(anything)))
        return {
            "name": name,
            "kwargs": kwargs,
            "tail": draw(st.sampled_from([""] * 20 + ["x", "/", "%0a", "%00", "\u0131"])),
            "data": data,
            "post": draw(st.booleans()),
            "htmx": draw(st.booleans()),
            "referer": draw(st.sampled_from(["", ELSEWHERE, "http://testserver/snapshots/?q=" + INPUT])),
        }

    return request()


# --- what must not happen ----------------------------------------------------------------------------------------------


def ask(session: str, wanted: dict[str, Any]) -> HttpResponse | None:
    try:
        url = reverse(wanted["name"], kwargs=wanted["kwargs"]) + wanted["tail"]
    except NoReverseMatch:
        return None
    client = Client()
    if session:
        client.cookies[django_settings.SESSION_COOKIE_NAME] = session
    headers = {"HX-Request": "true", "HX-Current-URL": wanted["referer"]} if wanted["htmx"] else {}
    if wanted["referer"]:
        headers["Referer"] = wanted["referer"]
    query = urlencode(wanted["data"], errors="replace")
    if wanted["post"]:
        return client.post(url, query, content_type="application/x-www-form-urlencoded", headers=headers)
    return client.get(f"{url}?{query}" if query else url, headers=headers)


def problems(role: str, wanted: dict[str, Any], response: HttpResponse) -> Iterator[str]:
    if response.status_code >= 500 and not (response.status_code == 503 and wanted["name"] in MAY_BE_UNAVAILABLE):
        yield f"answered {response.status_code}"
    for header in HEADERS_THAT_LEAD:
        goal = response.get(header, "")
        host = urlsplit(goal.replace("\\", "/")).netloc
        if host not in ("", "testserver") or goal.lower().startswith("javascript:"):
            yield f"{header} leads to {goal}"
    kind = response.get("Content-Type", "")
    if not kind.startswith("text/"):
        return
    body = response.getvalue().decode(errors="replace")
    if "html" in kind and (found := UNESCAPED.search(body)):
        yield f"not escaped: {body[max(0, found.start() - 80) : found.end() + 40]}"
    hidden = {OUT: (MINE, FOREIGN), STRANGER: (MINE, FOREIGN), ADMINISTRATOR: ()}.get(role, (FOREIGN,))
    sent = urlencode(wanted["data"], errors="replace").lower() + str(wanted["kwargs"]).lower()
    for mark in hidden:
        place = body.lower().find(mark)
        if place >= 0 and mark not in sent:
            yield f"shows what is not theirs: {body[max(0, place - 80) : place + 60]}"


@pytest.mark.parametrize("role", ROLES)
def test_whatever_is_sent_nothing_breaks_leaks_or_leads_away(
    role: str, people: dict[str, Any], request: pytest.FixtureRequest
) -> None:
    request.addfinalizer(lambda: logging.disable(logging.NOTSET))
    logging.disable(logging.CRITICAL)
    learned = learn(people)
    assert len(learned) > 20, "the pages have no forms and links any more"
    session = ""
    if people[role]:
        client = Client()
        client.force_login(people[role])
        session = client.cookies[django_settings.SESSION_COOKIE_NAME].value
    statuses: dict[int, int] = defaultdict(int)

    @settings(
        max_examples=REQUESTS // 2,
        derandomize=not LONG,  # the same in every `make test`, others in every long run
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.lists(requests_for(role, people["ids"], learned), min_size=1, max_size=4))
    def fuzz(sequence: list[dict[str, Any]]) -> None:
        with transaction.atomic():
            for wanted in sequence:
                response = ask(session, wanted)
                if response is None:
                    continue
                statuses[response.status_code] += 1
                found = list(problems(role, wanted, response))
                assert not found, f"{found}\n{wanted}"
            transaction.set_rollback(True)

    fuzz()
    while LONG and sum(statuses.values()) < REQUESTS:
        fuzz()
    print(f"\n{role}: {sum(statuses.values())} requests, {dict(sorted(statuses.items()))}")
    assert statuses[200] > REQUESTS / 40, "almost nothing was answered with a page"
