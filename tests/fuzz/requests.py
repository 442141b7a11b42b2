"""The fuzzer's requests: to every URL of the URL configuration, with the forms found on pages."""

import contextlib
import json
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import parse_qsl, quote, urlencode, urlsplit

from django.conf import settings
from django.contrib import admin
from django.http import HttpResponse
from django.test import RequestFactory
from django.test.client import ClientHandler
from django.urls import NoReverseMatch, Resolver404, resolve, reverse
from hypothesis import strategies as st

from tests.addresses import ADDRESSES
from tests.permissions import ADMINISTRATOR, OUT, OWNER, TABLE

from .world import CREDENTIAL, HOSTILE, INPUT, PASSWORD

ELSEWHERE = "https://elsewhere.example"
# Catch-alls can't be reversed; PATHS has some of what they catch.
PATTERNS = {name: parameters for name, parameters in ADDRESSES.items() if not set(name) & set("<^$")}
METHODS = {row.name: row.methods.split() for rows in TABLE.values() for row in rows}
HEADERS = ["Referer", "User-Agent", "Accept-Language", "X-Forwarded-For", "Host", "Cookie", "Range"]
HTMX_HEADERS = ["HX-Current-URL", "HX-Target", "HX-Trigger", "HX-Trigger-Name", "HX-Prompt"]
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
# URLs without a name: probes, files, catch-alls, and paths that a proxy might pass on
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
# Parameters that the code reads without a form
SOURCES = [path for folder in ("cng_portal", "billing", "snapshots") for path in Path(folder).rglob("*.py")]
NAMES_READ = sorted(
    {name for path in SOURCES for name in re.findall(r"\.(?:GET|POST)\.\w+\(\s*\"(\w+)\"", path.read_text())}
)


@dataclass
class Form:
    """The fields of a form or the parameters of a link, each with the values on the page."""

    fields: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))


class Reader(HTMLParser):
    """Parses the forms and links of a page into (URL, Form)."""

    def __init__(self, page_path: str) -> None:
        super().__init__()
        self.page_path, self.forms = page_path, [(page_path, Form())]
        self.form: Form | None = None
        self.by_id: dict[str, Form] = defaultdict(Form)
        self.select = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = {name: value or "" for name, value in attrs}
        if tag == "form":
            self.form = self.by_id[attributes["id"]] if attributes.get("id") else Form()
            self.forms.append((urlsplit(attributes.get("action", "")).path or self.page_path, self.form))
        for name in "hx-post", "hx-get", "hx-delete", "href", "formaction", "action":
            if attributes.get(name):
                address = urlsplit(attributes[name])
                if name in ("formaction", "hx-post") and self.form and not address.query:
                    self.forms.append((address.path or self.page_path, self.form))
                elif not address.netloc:
                    link = Form()
                    for key, value in parse_qsl(address.query, keep_blank_values=True):
                        link.fields[key].append(value)
                    self.forms.append((address.path or self.page_path, link))
        name = attributes.get("name") or (self.select if tag == "option" else "")
        if tag == "select":
            self.select = name
        if name and tag in ("input", "select", "textarea", "button", "option") and name != "csrfmiddlewaretoken":
            form = self.by_id[attributes["form"]] if attributes.get("form") else self.form or self.forms[0][1]
            form.fields[name].append(attributes.get("value", ""))

    def handle_endtag(self, tag: str) -> None:
        if tag == "form":
            self.form = None
        elif tag == "select":
            self.select = ""


ADMIN_MODELS = {f"admin:{m._meta.app_label}_{m._meta.model_name}_": m for m in admin.site._registry}


def learn(role: str, world: SimpleNamespace) -> dict[str, list[Form]]:
    """Collect {URL name: forms that lead there} from the pages of an owner or an administrator."""
    learned: dict[str, list[Form]] = defaultdict(list)
    for who in (OUT, OWNER, ADMINISTRATOR) if role == ADMINISTRATOR else (OUT, OWNER):
        session = world.sessions[who][min(1, len(world.sessions[who]) - 1)]
        for name, parameters in PATTERNS.items():
            is_page = "GET" in METHODS.get(name, ["GET"])
            if is_page and name.startswith("admin:") == (who == ADMINISTRATOR):
                pages = 0
                for url in dict.fromkeys(addresses(name, parameters, world)):
                    response = ask(session, {"url": url})
                    if response.status_code == 200 and "html" in response.get("Content-Type", ""):
                        read(url, response.getvalue().decode(), learned)
                        pages += 1
                    if pages == 3:
                        break
    return {name: forms[:40] for name, forms in learned.items()}


def addresses(name: str, parameters: dict[str, str], world: SimpleNamespace) -> Iterator[str]:
    for number in range(12) if parameters else range(1):
        kwargs = {}
        for parameter in parameters:
            real = ids_for(name, parameter, world.ids) or ["0"]
            # all steps of the drafts that are answered, and the other objects in turn
            kwargs[parameter] = real[number % len(real)] if parameter != "draft_id" else real[number % 5]
        with contextlib.suppress(NoReverseMatch):
            yield reverse(name, kwargs=kwargs)


def ids_for(name: str, parameter: str, ids: dict[str, list[str]]) -> list[str]:
    for prefix, model in ADMIN_MODELS.items():
        if parameter == "object_id" and name.startswith(prefix):
            return [str(pk) for pk in model._default_manager.values_list("pk", flat=True)[:20]]
    values = ids.get(parameter, [])
    if PATTERNS[name][parameter] == "IntConverter":
        return [value for value in values if value.isdigit()]
    return values


def read(url: str, body: str, learned: dict[str, list[Form]]) -> None:
    reader = Reader(url)
    reader.feed(body)
    for address, form in reader.forms:
        if form.fields and (name := name_of(address)) and form not in learned[name]:
            learned[name].append(form)


@cache
def name_of(address: str) -> str:
    """Return the name of the address's URL, or an empty string. Cached, because every page has the links of the menu."""
    try:
        return resolve(address).view_name
    except Resolver404:
        return ""


def mostly(usual: st.SearchStrategy, *others: st.SearchStrategy) -> st.SearchStrategy:
    return st.one_of(*[usual] * 6, *others)


def requests_for(
    role: str, world: SimpleNamespace, learned: dict[str, list[Form]]
) -> st.SearchStrategy[dict[str, Any]]:
    every_id = sorted({pk for ids in world.ids.values() for pk in ids})
    weird, text = st.sampled_from(WEIRD), st.text(max_size=30)
    anything = weird | st.sampled_from(every_id) | text
    by_converter = {
        "UUIDConverter": st.sampled_from(world.uuids) | st.uuids().map(str),
        "IntConverter": st.sampled_from([0, 1, 2**31, 2**63, 2**70]) | st.integers(0),
    }

    # Strategies are built once, because hypothesis takes longer to build one than to draw from it.
    def address(name: str) -> st.SearchStrategy[tuple[str, str]]:
        def value(parameter: str, converter: str) -> st.SearchStrategy:
            others = by_converter.get(converter, anything)
            real = ids_for(name, parameter, world.ids)
            return mostly(st.sampled_from(real), others) if real else others

        def url(kwargs: dict[str, Any], tail: str) -> tuple[str, str]:
            try:
                return name, reverse(name, kwargs=kwargs) + tail
            except (NoReverseMatch, UnicodeEncodeError):
                return "", "/" + quote(str(kwargs), errors="replace")

        tail = mostly(st.just(""), st.just(""), st.sampled_from(["", "x", "/", "%0a", "%00", "\u0131"]))
        return st.builds(
            url, st.fixed_dictionaries({key: value(key, kind) for key, kind in PATTERNS[name].items()}), tail
        )

    by_name = {
        **dict.fromkeys(("login", "email"), st.sampled_from(world.emails)),
        **dict.fromkeys(("password", "oldpassword"), st.just(PASSWORD)),
        **dict.fromkeys(("password1", "password2"), st.just("another passw0rd")),
        "confirmation": st.sampled_from(world.names),
        "credential": st.sampled_from(
            [json.dumps(CREDENTIAL), "{}", "[]", "1", '{"id": 1}', '{"response": {"a": []}}']
        ),
        "next": weird | st.just("/volumes/"),
    }
    typed = st.sampled_from([*world.names, "web", "1", "10", "0.4", "2026-11-30", "02:00"]) | weird | text

    def answers(form: Form) -> st.SearchStrategy[list[tuple[str, str]]]:
        def value(name: str, offered: list[str]) -> st.SearchStrategy[str]:
            offers = st.sampled_from(offered).flatmap(lambda value: st.just(value) if value else typed)
            return mostly(by_name.get(name, offers), anything)

        fields = {name: value(name, offered) for name, offered in form.fields.items()}
        return mostly(st.fixed_dictionaries(fields), st.fixed_dictionaries({}, optional=fields)).map(
            lambda values: list(values.items())
        )

    names = {name for forms in learned.values() for form in forms for name in form.fields} | {*NAMES_READ, "next"}
    weird_keys = ["fold", "__proto__", "id__in", "name__regex", INPUT + HOSTILE, "_popup", "_to_field", "_save", "e"]
    pair = st.tuples(st.sampled_from(sorted(names) + weird_keys), anything)
    more = mostly(st.just([]), st.lists(pair, max_size=4), st.lists(pair, max_size=4))
    in_header = st.sampled_from([ELSEWHERE, f"{INPUT}{HOSTILE}", "x" * 3000, "\xff\xfe", "http://testserver/volumes/"])
    true = st.just("true")
    htmx = st.fixed_dictionaries(
        {"HX-Request": true},
        optional=dict.fromkeys(HTMX_HEADERS, in_header)
        | {"HX-Boosted": mostly(st.just(""), true), "HX-History-Restore-Request": mostly(st.just(""), true)},
    )
    header = mostly(st.just({}), st.dictionaries(st.sampled_from(HEADERS), in_header, min_size=1, max_size=1))
    any_method = st.sampled_from(["GET", "POST"] * 4 + ["HEAD", "PUT", "DELETE", "PATCH", "OPTIONS"])

    @cache
    def request(name: str) -> st.SearchStrategy[dict[str, Any]]:
        forms = learned.get(name)
        data = st.one_of([answers(form) for form in forms]) if forms else st.just([])
        unnamed = st.sampled_from(PATHS) | text.map("/".__add__)
        return st.fixed_dictionaries(
            {
                "goal": address(name) if name else st.tuples(st.just(""), unnamed),
                "data": st.builds(lambda sent, added: sent + added, data, more),
                "method": mostly(st.sampled_from(METHODS.get(name, ["GET", "POST"])), any_method),
                "session": st.sampled_from(world.sessions[role]),
                "headers": st.builds(lambda first, second: first | second, st.just({}) | htmx, header),
                "sent": st.sampled_from(["form"] * 12 + ["multipart", "json", "torn"]),
                # a double click, and the rate limits
                "times": mostly(st.just(1), st.just(1), st.sampled_from([1, 5])),
            }
        ).map(aim)

    def aim(drawn: dict[str, Any]) -> dict[str, Any]:
        name, url = drawn.pop("goal")
        return {"name": name, "url": url} | drawn

    # most URLs are Django admin's, which only administrators may use
    desk = [name for name in PATTERNS if name.startswith("admin:")]
    portal = [name for name in PATTERNS if name not in desk]
    weighted = portal + desk if role == ADMINISTRATOR else portal * 8 + desk
    named = st.sampled_from(weighted) | st.sampled_from([name for name in weighted if name in learned])
    return mostly(named, named, st.just("")).flatmap(request)


class Asker(RequestFactory):
    """Sends requests as a proxy does, faster than django.test.Client, which copies every context."""

    def __init__(self) -> None:
        super().__init__()
        self.handler = ClientHandler(enforce_csrf_checks=False)

    def request(self, **environ: Any) -> HttpResponse:
        return self.handler(self._base_environ(**environ))


asker = Asker()


def ask(session: str, wanted: dict[str, Any]) -> HttpResponse:
    asker.cookies.clear()
    if session:
        asker.cookies[settings.SESSION_COOKIE_NAME] = session
    method, path, data = wanted.get("method", "GET"), wanted["url"], wanted.get("data", [])
    headers = dict(wanted.get("headers", {}))
    environ: dict[str, Any] = {}
    if "Cookie" in headers:
        environ["HTTP_COOKIE"] = f"sessionid={headers.pop('Cookie')}; messages=x; csrftoken={INPUT}{HOSTILE}"
    if path.startswith("//") or "\\" in path:  # headers from the browser never reach the portal
        environ["PATH_INFO"] = path.encode(errors="replace").decode("latin-1")
        path = "/"  # which RequestFactory parses as a URL: it takes what follows "//" for a host
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
