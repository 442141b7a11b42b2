"""Fuzzes every form and every parameter of every URL, in every role, with hypothesis.

URLs come from the URL configuration; forms, fields and parameters come from the pages, so new pages are included
automatically. FUZZ_REQUESTS=20000 sends that many requests in each role, and prints the responses by URL; `-k owner` runs
one role only.

Responses are searched for three words and for foreign IDs. MINE is in every text of the roles' customer, FOREIGN in every
text of another customer, and INPUT in every request; each is followed by characters that HTML must escape.
"""

import logging
import os
import re
import time
import traceback
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit

import pytest
from django.core import mail
from django.core.signals import got_request_exception
from django.db import connection, transaction
from django.http import HttpResponse
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fuzz.requests import PATTERNS, ask, learn, requests_for
from tests.fuzz.world import FOREIGN, INPUT, MINE, UUIDS, create_world
from tests.permissions import ADMINISTRATOR, OUT, OWNER, ROLES, STRANGER

pytestmark = [pytest.mark.django_db, pytest.mark.slow]

LONG = "FUZZ_REQUESTS" in os.environ
REQUESTS = int(os.environ.get("FUZZ_REQUESTS", "160"))
UNESCAPED = re.compile(rf"({MINE}|{FOREIGN}|{INPUT})(<|\"|'|&(?!lt;|gt;|amp;|quot;|\#x27;|\#39;))", re.IGNORECASE)
# an attribute that makes a browser open or fetch something from another site
LEADING = re.compile(
    r"""\b(?:href|src|action|formaction|poster|data|hx-[a-z-]+)\s*=\s*["']?\s*"""
    r"""(?:(?:https?:)?[/\\]{2}elsewhere|javascript:)[^"'\s>]*""",
    re.IGNORECASE,
)
HEADERS_THAT_LEAD = ("Location", "HX-Redirect", "HX-Location", "HX-Push-Url", "HX-Replace-Url")
# Reports that the portal is unhealthy, which isn't a failure of the page.
MAY_BE_UNAVAILABLE = {"/readyz", "/metrics"}


@pytest.fixture
def world(storage_root: Path, settings: Any) -> SimpleNamespace:
    settings.ACTIONS_PER_HOUR = dict.fromkeys(settings.ACTIONS_PER_HOUR, 1)  # a second one is refused
    settings.ACCOUNT_RATE_LIMITS = {key: "3/m/ip" for key in settings.ACCOUNT_RATE_LIMITS}
    return create_world(storage_root)


def refuse_nul(execute: Any, sql: str, params: Any, many: bool, context: dict[str, Any]) -> Any:
    """Fail as PostgreSQL does, which stores no NUL, neither in text nor in JSON."""
    for values in params if many else [params]:
        for value in values or ():
            if isinstance(value, str) and ("\0" in value or "\\u0000" in value):
                raise ValueError(f"PostgreSQL text fields cannot contain NUL bytes: {value!r:.100}")
    return execute(sql, params, many, context)


def goal_of(response: HttpResponse) -> str:
    """Return where a browser goes next, if that is a page of the portal."""
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
        if match := UNESCAPED.search(body):
            yield f"not escaped: {body[max(0, match.start() - 80) : match.end() + 40]}"
        if link := LEADING.search(body):
            yield f"a link elsewhere: {link[0]}"
    small = body.lower()
    for mark in marks:
        at = small.find(mark)
        if at >= 0 and mark not in sent:
            yield f"shows what is not theirs: {body[max(0, at - 80) : at + 60]}"
    if leaked := [uuid for uuid in ids.intersection(UUIDS.findall(body)) if uuid not in sent]:
        yield f"shows the id of what is not theirs: {leaked[0]}"


@pytest.mark.parametrize("role", ROLES)
def test_random_requests_break_leak_and_redirect_nothing(
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
    problems_by_kind: dict[tuple[str, str], str] = {}
    looking = world.sessions[ADMINISTRATOR][-1]

    def check(wanted: dict[str, Any], response: HttpResponse, sent: str) -> None:
        marks: tuple[str, ...] = (MINE, FOREIGN) if role in (OUT, STRANGER) else (FOREIGN,)
        ids = world.secret.get(role, set())
        if role == ADMINISTRATOR:  # sees everything in Django admin, and can view the portal as a user
            eyes = wanted.get("session") == looking and not wanted["url"].startswith("/admin/")
            marks, ids = ((FOREIGN,), world.secret[OWNER]) if eyes else ((), set())
        if "/invitations/" in sent:  # whose link grants access to the project
            marks, ids = (), set()
        for problem in problems(wanted, response, sent, marks, ids):
            key = (wanted["name"], problem[:30])
            if key not in problems_by_kind:
                problems_by_kind[key] = f"{role}: {problem}\n{wanted}\n{''.join(raised)}"
                print(f"\n{problems_by_kind[key]}", flush=True)
        raised.clear()

    @settings(
        max_examples=min(1000, REQUESTS // 4) if LONG else REQUESTS // 2,
        derandomize=not LONG,  # the same in every `make test`, different in every long run
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.lists(requests_for(role, world, learned), min_size=1, max_size=4))
    def fuzz(sequence: list[dict[str, Any]]) -> None:
        with transaction.atomic(), connection.execute_wrapper(refuse_nul):
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
    weighty = {name for name in PATTERNS if role == ADMINISTRATOR or not name.startswith("admin:")}
    # chance may skip a URL
    while LONG and statuses.total() < REQUESTS * (1.5 if weighty - by_address.keys() else 1):
        spent = f"{time.monotonic() - began:.0f} s, {time.process_time():.0f} s of CPU"
        print(f"{role}: {statuses.total()} requests in {spent}", flush=True)
        fuzz()
    print(f"\n{role}: {statuses.total()} requests, {dict(sorted(statuses.items()))}")
    if LONG:
        for name, answers in sorted(by_address.items()):
            print(f"  {name or '(no name)'}: {answers.total()} {dict(sorted(answers.items()))}")
        assert REQUESTS < 10_000 or weighty <= by_address.keys(), f"never asked: {weighty - by_address.keys()}"
    assert not problems_by_kind, "\n\n".join(problems_by_kind.values())
    assert statuses[200] > REQUESTS / 40, "almost nothing was answered with a page"
