"""The simulated users: customers, the colleagues they invite, and administrators.

Each is a thread with its own HTTP client, which picks one action after the other and carries on after errors. They know only
pages: they fill in the forms that they get.
"""

import collections
import http.client
import random
import re
import threading
import time
from collections.abc import Callable
from datetime import UTC, timedelta
from html import unescape
from html.parser import HTMLParser
from http.cookies import SimpleCookie
from typing import NamedTuple
from urllib.parse import urlencode, urlsplit

from django.conf import settings
from django.contrib.auth import BACKEND_SESSION_KEY, HASH_SESSION_KEY, SESSION_KEY
from django.contrib.sessions.backends.db import SessionStore

from billing.models import Package
from cng_portal.accounts.models import User
from cng_portal.inventory.models import Volume

from . import disks, portal

PASSWORD = "a password of the storm"
TOKEN = "c" * 32
UUID = "[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"
# A request that takes longer than every timeout of the portal hangs.
HANGS_AFTER_SECONDS = 30.0
PAGES = ["/", "/snapshots/", "/snapshots/vm/", "/volumes/", "/instances/", "/backups/", "/backups/schedules/"]
PAGES += ["/billing/", "/billing/subscriptions/", "/billing/credits/", "/billing/transactions/", "/billing/statement/"]
PAGES += [
    "/billing/usage.csv",
    "/notifications/",
    "/projects/",
    "/profile/",
    "/profile/activity/",
    "/profile/sessions/",
]
PAGES += ["/profile/limits/", "/backups/?view=cards", "/snapshots/?sort=oldest", "/backups/schedules/?show=troubled"]
ADMIN_PAGES = ["/admin/", "/admin/snapshots/operation/overview/", "/admin/snapshots/operation/"]
ADMIN_PAGES += ["/admin/snapshots/snapshot/", "/admin/snapshots/backuprun/", "/admin/snapshots/backupschedule/"]
ADMIN_PAGES += ["/admin/inventory/virtualmachine/", "/admin/billing/usagesegment/", "/admin/billing/customeraccount/"]
ADMIN_PAGES += ["/admin/activity/activity/", "/admin/billing/package/", "/admin/inventory/volume/"]

statuses: collections.Counter[str] = collections.Counter()
actions: collections.Counter[tuple[str, str]] = collections.Counter()  # (action, outcome)
failures: list[str] = []
slowest: list[float] = [0.0]
# What a successful response confirmed, and must therefore be true afterwards: (what, ID).
promises: list[tuple[str, str]] = []
# IDs of what a user asked to put back from the recycle bin or to erase, whether or not there was an answer.
asked_back: set[str] = set()
asked_erased: set[str] = set()


class Form(NamedTuple):
    action: str
    fields: dict[str, list[str]]


class Page(NamedTuple):
    status: int
    location: str  # where it redirects to
    text: str
    path: str

    def find(self, pattern: str) -> list[str]:
        return list(dict.fromkeys(re.findall(pattern, self.text)))

    def form(self, action: str) -> dict[str, list[str]] | None:
        """Return the fields of the form with this action, with their initial values, or None."""
        reader = FormReader(self.path)
        reader.feed(self.text)
        return next((form.fields for form in reader.forms if urlsplit(form.action).path == action), None)


class FormReader(HTMLParser):
    def __init__(self, path: str) -> None:
        super().__init__()
        self.path = path
        self.forms: list[Form] = []
        self.open: Form | None = None
        self.select = self.textarea = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = {name: value or "" for name, value in attrs}
        name, kind = attributes.get("name", ""), attributes.get("type", "")
        if tag == "form" and attributes.get("method", "").lower() == "post":
            self.open = Form(attributes.get("action") or self.path, {})
            self.forms.append(self.open)
        if self.open is None or "disabled" in attributes:
            return
        if tag == "select":
            self.select = name
        elif tag == "option" and self.select:
            # a browser sends the first if none is selected
            if "selected" in attributes or self.select not in self.open.fields:
                self.open.fields[self.select] = [attributes.get("value", "")]
        elif tag == "textarea":
            self.textarea = name
            self.open.fields[name] = [""]
        elif tag == "input" and name and kind not in ("submit", "button", "file"):
            is_ticked = kind in ("checkbox", "radio")
            if not is_ticked or "checked" in attributes:
                self.open.fields.setdefault(name, []).append(attributes.get("value", "on" if is_ticked else ""))

    def handle_data(self, data: str) -> None:
        if self.textarea and self.open:
            self.open.fields[self.textarea][0] += data

    def handle_endtag(self, tag: str) -> None:
        if tag == "form":
            self.open = None
        elif tag == "select":
            self.select = ""
        elif tag == "textarea":
            self.textarea = ""


def id_of(path: str, *, before: int = 1) -> str:
    """Return the ID in a path, which ends with it or has it `before` the end."""
    return path.strip("/").split("/")[-before]


class Actor(threading.Thread):
    """A user with an HTTP client, an IP address and a list of actions. An action returns whether it succeeded, or None if
    there was nothing to act on.
    """

    addresses = 1

    def __init__(self, who: str, seed: int) -> None:
        super().__init__(name=who, daemon=True)
        self.email = who
        self.random = random.Random(seed)
        Actor.addresses += 1
        self.address = f"127.0.1.{Actor.addresses}"  # sign-ins are limited per address
        self.cookies: dict[str, str] = {}
        self.actions: list[Callable[[], bool | None]] = []
        self.clicks = 0
        self.chosen = ""  # the page of the snapshot that was chosen or taken most recently

    def run(self) -> None:
        while not portal.over.is_set():
            action = self.random.choice(self.actions)
            name = action.__name__.replace("_", " ")
            try:
                outcome = {True: "done", False: "refused", None: "nothing there"}[action()]
            except (OSError, http.client.HTTPException):
                outcome = "no answer"
                portal.over.wait(0.3)
            actions[name, outcome] += 1

    def ask(self, path: str, data: dict[str, list[str]] | None = None) -> Page:
        """Send a request. Raises OSError or HTTPException if there is no response."""
        client = http.client.HTTPConnection(
            "127.0.0.1", portal.PORT, timeout=2 * HANGS_AFTER_SECONDS, source_address=(self.address, 0)
        )
        cookies = self.cookies | {settings.CSRF_COOKIE_NAME: TOKEN}
        headers = {"Cookie": "; ".join(f"{name}={value}" for name, value in cookies.items())}
        headers |= {"Host": f"localhost:{portal.PORT}", "User-Agent": "Firefox/130.0 (X11; Linux)"}
        method = "GET" if data is None else "POST"
        began = time.monotonic()
        request_id = ""
        try:
            if data is None:
                client.request("GET", path, headers=headers)
            else:
                headers["Content-Type"] = "application/x-www-form-urlencoded"
                sent = data | {"csrfmiddlewaretoken": [TOKEN]}
                client.request("POST", path, urlencode(sent, doseq=True), headers)
            answer = client.getresponse()
            text = answer.read().decode(errors="replace")
        except TimeoutError:
            statuses["hung"] += 1
            if not portal.was_out(began, time.monotonic()):
                failures.append(f"{method} {path} got no answer in {time.monotonic() - began:.0f} s")
            raise
        except (OSError, http.client.HTTPException) as error:
            statuses["broken off"] += 1
            if not portal.was_out(began, time.monotonic()):
                seconds = time.monotonic() - began
                failures.append(
                    f"{method} {path}: {error!r} after {seconds:.1f} s although nobody had killed the web server"
                )
            raise
        finally:
            client.close()
        seconds = time.monotonic() - began
        statuses[f"{answer.status // 100}xx" if answer.status not in (403, 404, 429) else str(answer.status)] += 1
        for cookie in answer.headers.get_all("Set-Cookie") or []:
            for name, morsel in SimpleCookie(cookie).items():
                if name == settings.SESSION_COOKIE_NAME:
                    self.cookies[name] = morsel.value
        if not portal.was_out(began, time.monotonic()):
            slowest[0] = max(slowest[0], seconds)
            request_id = answer.headers.get("X-Request-ID") or ""
            if answer.status >= 500:
                failures.append(f"{method} {path}: {answer.status} for {self.name}\n{log_of_request(request_id)}")
            if seconds > HANGS_AFTER_SECONDS:
                failures.append(f"{method} {path} took {seconds:.0f} s")
        elif answer.status >= 500:
            statuses["5xx while something was down"] += 1
        location = urlsplit(answer.getheader("Location") or "")
        return Page(answer.status, location.path, text, path)

    def fill(self, page: Page, action: str, **answers: object) -> Page | None:
        """Submit the page's form with these answers and its initial values; None if it has no such form."""
        fields = page.form(action)
        if fields is None:
            return None
        named = {name.replace("__", "-"): value for name, value in answers.items()}
        return self.ask(action, fields | {name: [str(value)] for name, value in named.items()})

    def choose(self, path: str, pattern: str) -> str:
        """Return a random match of the pattern on the page, or an empty string."""
        matches = self.ask(path).find(pattern)
        return self.random.choice(matches) if matches else ""

    def confirm(self, path: str, **answers: object) -> bool | None:
        """Open a confirmation page, type the text that it requires, and submit it."""
        page = self.ask(path)
        if page.status != 200:
            return None
        if typed := re.search(r"(?:name, ([^<]+?),|Type “([^<]+?)”) to confirm", unescape(page.text)):
            answers["confirmation"] = typed[1] or typed[2]
        if 'name="is_last"' in page.text:
            answers["is_last"] = "on"
        answer = self.fill(page, path.partition("?")[0], **answers)
        return None if answer is None else answer.status == 302

    def open_page(self) -> bool:
        return self.ask(self.random.choice(PAGES)).status == 200

    def sign_out_and_in(self) -> bool:
        self.ask("/accounts/logout/", {})
        return self.sign_in()

    def sign_in(self) -> bool:
        self.cookies.clear()
        answer = self.fill(self.ask("/accounts/login/"), "/accounts/login/", login=self.email, password=PASSWORD)
        signed_in = answer is not None and answer.status == 302
        if signed_in:
            promises.append(("signed in", self.email))
        return signed_in


def log_of_request(request_id: str) -> str:
    """Return the web server's log lines of a request, with the traceback."""
    lines = (portal.FOLDER / "web.log").read_text(errors="replace").splitlines()
    first = next((number for number, line in enumerate(lines) if request_id and request_id in line), None)
    if first is None:
        return f"(nothing in the log of request {request_id!r})"
    last = next(
        (number for number in range(first + 1, len(lines)) if re.match(r"\d{4}-\d\d-\d\dT", lines[number])), len(lines)
    )
    return "\n".join(lines[first : min(last, first + 80)])


class Customer(Actor):
    """The owner of a project, who uses everything, and whose machines write to their disks."""

    def __init__(self, owner: User, seed: int) -> None:
        super().__init__(owner.email, seed)
        self.volumes = list(Volume.objects.filter(project__members=owner))
        self.project = str(self.volumes[0].project_id)
        self.invited = 0
        session = SessionStore()  # signed in from the start; they sign out and in again later
        session[SESSION_KEY] = str(owner.pk)
        session[BACKEND_SESSION_KEY] = settings.AUTHENTICATION_BACKENDS[0]
        session[HASH_SESSION_KEY] = owner.get_session_auth_hash()
        session.save()
        self.cookies[settings.SESSION_COOKIE_NAME] = str(session.session_key)
        often = [self.take_snapshot, self.take_vm_snapshot, self.delete, self.delete_many, self.open_page, self.write]
        seldom = [self.restore, self.restore_machine, self.undo, self.new_volume, self.new_machine, self.rename]
        seldom += [self.verify, self.retry, self.pin, self.read_notifications, self.invite, self.revoke_invitation]
        seldom += [self.create_backup, self.edit_backup, self.pause_backup, self.resume_backup, self.delete_schedule]
        seldom += [self.lock, self.lift_lock, self.put_back, self.put_back, self.erase, self.delete_volume, self.drill]
        seldom += [self.sign_out_and_in]
        self.actions = 3 * often + 2 * [self.run_backup_now, self.cancel, self.write, self.write] + seldom

    def ask(self, path: str, data: dict[str, list[str]] | None = None) -> Page:
        """Send a request, after signing in again if the clock jumped and the session expired."""
        page = super().ask(path, data)
        if page.location == "/accounts/login/" and not path.startswith("/accounts/") and self.sign_in():
            page = super().ask(path, data)
        return page

    def a_snapshot(self, *lists: str) -> str:
        lists = lists or ("/snapshots/", "/snapshots/vm/", "/backups/", "/snapshots/?sort=oldest")
        self.chosen = self.choose(self.random.choice(lists), rf'href="(/snapshots/{UUID}/)"')
        return self.chosen

    def a_machine(self) -> str:
        return self.choose("/instances/", rf'href="(/instances/{UUID}/)"')

    def a_schedule(self, show: str = "") -> str:
        return self.choose(f"/backups/schedules/?show={show}", rf'href="(/backups/schedules/{UUID}/)"')

    # snapshots

    def through_the_wizard(self, begin: str, leads_to: str, promise: str, **answers: object) -> bool | None:
        """Go through the wizard from the button to the result, with a double click now and then."""
        step = self.ask(begin, {})
        if not step.location:
            return None
        answer = self.fill(self.ask(step.location), step.location, **answers)
        if answer is None:
            return None
        review = answer.location
        page = self.ask(review) if review.endswith("/review/") else None
        if page is None:
            return False
        result: Page | None = None
        for _click in range(self.random.choice([1, 1, 2])):
            result = self.fill(page, review) or result
        if result is None or not re.fullmatch(leads_to, result.location):
            return False
        promises.append((promise, result.location.strip("/").rpartition("/")[2]))
        self.chosen = result.location
        return True

    def take_snapshot(self) -> bool | None:
        path = self.choose("/volumes/", rf'href="(/volumes/{UUID}/)"')
        return self.take(path) if path else None

    def take_vm_snapshot(self) -> bool | None:
        path = self.a_machine()
        return self.take(path) if path else None

    def take(self, path: str) -> bool | None:
        self.clicks += 1
        name = f"{self.email[:20]} {self.clicks}"
        return self.through_the_wizard(f"{path}take-snapshot/", rf"/snapshots/{UUID}/", "taken", name=name)

    def delete(self) -> bool | None:
        path = self.a_snapshot()
        outcome = self.confirm(f"{path}delete/") if path else None
        if outcome:
            promises.append(("deleted", path.strip("/").rpartition("/")[2]))
        return outcome

    def delete_many(self) -> bool | None:
        listed = self.ask(self.random.choice(["/snapshots/", "/snapshots/vm/", "/backups/"]))
        ids = listed.find(rf'name="id" value="({UUID})"')
        if len(ids) < 6:  # leave some for the other actions
            return None
        chosen = self.random.sample(ids, self.random.randint(2, 4))
        page = self.ask(f"/snapshots/delete/?{urlencode({'id': chosen}, doseq=True)}")
        if page.status != 200:
            return None
        fields = {"id": chosen, "confirmation": [f"delete {len(chosen)} snapshots"], "is_last": ["on"]}
        return self.ask("/snapshots/delete/", fields).status == 200

    def restore(self) -> bool | None:
        path = self.a_snapshot("/snapshots/")
        return self.confirm(f"{path}restore/") if path else None

    def restore_machine(self) -> bool | None:
        path = self.a_snapshot("/snapshots/vm/", "/backups/")
        return self.confirm(f"{path}restore/") if path else None

    def undo(self) -> bool | None:
        pages = [f"/volumes/{volume.pk}/" for volume in self.volumes] + [self.a_snapshot() or "/"]
        undo = self.choose(self.random.choice(pages), rf'id="undo-{UUID}" href="(/snapshots/{UUID}/restore/)"')
        return self.confirm(undo) if undo else None

    def new_volume(self) -> bool | None:
        path = self.a_snapshot()
        size = self.random.choice([1, 1, 2])
        return self.confirm(f"{path}new-volume/", name=f"copy {self.clicks}", size_gb=size) if path else None

    def new_machine(self) -> bool | None:
        path = self.a_snapshot("/snapshots/vm/", "/backups/")
        return self.confirm(f"{path}new-machine/", name=f"machine {self.clicks}") if path else None

    def rename(self) -> bool | None:
        path = self.a_snapshot()
        name = f"renamed {self.email[:20]} {self.random.randrange(30)}"
        return self.confirm(f"{path}rename/", name=name) if path else None

    def verify(self) -> bool | None:
        path = self.a_snapshot()
        return self.ask(f"{path}verify/", {}).status == 302 if path else None

    def cancel(self) -> bool | None:
        """Cancel the operation requested last, or one of a random snapshot or backup."""
        begin = [self.take_snapshot, self.take_vm_snapshot, self.restore, self.restore_machine, self.new_volume]
        begin += [self.new_machine, self.verify, self.a_snapshot]
        if not self.random.choice(begin)() or not self.chosen:
            return None
        page = self.ask(self.choose(self.chosen, rf'href="(/(?:operations|snapshots)/{UUID}/cancel/)"') or "/")
        path = next(iter(page.find(rf'action="(/operations/{UUID}/cancel/)"')), "")
        answer = self.fill(page, path) if path else None
        if answer is None:
            return None
        if answer.status == 302:
            promises.append(("cancelled", path.split("/")[2]))
        return answer.status == 302

    # locks, the recycle bin, drills

    def lock(self) -> bool | None:
        """Lock a snapshot or backup, or lengthen its lock, until the end of one of the next days."""
        path = self.a_snapshot()
        if not path:
            return None
        day = (portal.portal_time() + timedelta(days=self.random.choice([1, 2, 3]))).date()
        answers = {"day": day, "mode": self.random.choice(["governance", "compliance"]), "cooling_off_hours": 1}
        page = self.ask(f"{path}lock/?{urlencode(answers)}")
        answer = self.fill(page, f"{path}lock/")
        if answer is None:
            return None
        if answer.status == 302:
            promises.append(("locked", id_of(path)))
        return answer.status == 302

    def lift_lock(self) -> bool | None:
        path = self.a_snapshot()
        return self.confirm(f"{path}lift-lock/", reason="The storm is over") if path else None

    def in_bin(self, action: str) -> str:
        """Return the page of an action on something in the recycle bin, or an empty string."""
        path = self.random.choice(["/recycle-bin/", "/recycle-bin/volumes/"])
        return self.choose(path, rf'href="({path}{UUID}/{action}/)"')

    def put_back(self) -> bool | None:
        path = self.in_bin("put-back")
        if not path:
            return None
        asked_back.add(id_of(path, before=2))
        return self.confirm(path)

    def erase(self) -> bool | None:
        path = self.in_bin("delete")
        if not path:
            return None
        asked_erased.add(id_of(path, before=2))
        outcome = self.confirm(path)
        if outcome:
            promises.append(("erased", id_of(path, before=2)))
        return outcome

    def delete_volume(self) -> bool | None:
        """Delete a volume, but not one of those from the start, which the machines write to."""
        own = {f"/volumes/{volume.pk}/" for volume in self.volumes}
        others = [path for path in self.ask("/volumes/").find(rf'href="(/volumes/{UUID}/)"') if path not in own]
        if not others:
            return None
        path = self.random.choice(others)
        outcome = self.confirm(f"{path}delete/")
        if outcome:
            promises.append(("volume deleted", id_of(path)))
        return outcome

    def drill(self) -> bool | None:
        path = self.a_snapshot()
        return self.ask(f"{path}drill/", {}).status == 302 if path else None

    def retry(self) -> bool | None:
        paths = self.ask("/").find(rf'"(/operations/{UUID}/retry/)"')[:3]
        return any([self.ask(path, {}).status == 302 for path in paths]) if paths else None

    # backups

    def schedule_fields(self) -> dict[str, object]:
        """Return a daily schedule, due within minutes, or at any hour that a jump of the clock may reach."""
        soon = (portal.portal_time() + timedelta(minutes=self.random.choice([1, 2, 3, 60, 600]))).astimezone(UTC)
        local = soon + timedelta(hours=6, minutes=30)  # customers are in Yangon
        interval = self.random.choice(["daily", "daily", "daily", "weekly", "monthly"])
        return {
            "interval": interval,
            "weekday": local.weekday(),
            "month_day": local.day,
            "at": f"{local:%H:%M}",
            "retention_count": self.random.choice([1, 2, 3]),
        }

    def create_backup(self) -> bool | None:
        path = self.a_machine()
        if not path or len(self.ask("/backups/schedules/").find(rf'href="(/backups/schedules/{UUID}/)"')) > 5:
            return None
        statuses = self.schedule_fields() | ({"take_one_now": "on"} if self.random.random() < 0.5 else {})
        return self.through_the_wizard(f"{path}back-up/", rf"/backups/schedules/{UUID}/", "scheduled", **statuses)

    def edit_backup(self) -> bool | None:
        path = self.a_schedule()
        return self.confirm(f"{path}edit/", **self.schedule_fields()) if path else None

    def pause_backup(self) -> bool | None:
        path = self.a_schedule("active")
        return self.confirm(f"{path}pause/") if path else None

    def resume_backup(self) -> bool | None:
        path = self.a_schedule("paused")
        return self.confirm(f"{path}resume/") if path else None

    def run_backup_now(self) -> bool | None:
        path = self.a_schedule()
        return self.confirm(f"{path}run/") if path else None

    def delete_schedule(self) -> bool | None:
        path = self.a_schedule()
        outcome = self.confirm(f"{path}delete/") if path else None
        if outcome:
            promises.append(("schedule deleted", path.strip("/").rpartition("/")[2]))
        return outcome

    def pin(self) -> bool | None:
        path = self.a_snapshot("/backups/")
        return self.confirm(f"{path}pin/") if path else None

    # members and notifications

    def read_notifications(self) -> bool | None:
        path = self.choose("/notifications/", rf'"(/notifications/{UUID}/)"')
        if path:
            self.ask(path)
        return self.ask("/notifications/read/", {}).status == 302

    def invite(self) -> bool | None:
        if self.invited >= 4:
            return None
        self.invited += 1
        guest = f"guest-{self.invited}-of-{self.email}"
        role = self.random.choice(["member", "viewer"])
        return self.confirm(f"/members/{self.project}/invite/", email=guest, role=role)

    def revoke_invitation(self) -> bool | None:
        path = self.choose(f"/projects/{self.project}/", rf'"(/members/invitations/{UUID}/revoke/)"')
        if not path or self.random.random() < 0.7:  # leave most to be accepted
            return None
        return self.ask(path, {}).status == 302

    # their machines

    def write(self) -> bool:
        self.clicks += 1
        portal.over.wait(0.05)
        return disks.write(self.random.choice(self.volumes), self.clicks)


class Guests(Actor):
    """Invited users: they open the link in their e-mail, join, browse and leave."""

    def __init__(self, seed: int) -> None:
        super().__init__("guests", seed)
        self.read: set[str] = set()
        self.actions = [self.accept_invitation, self.browse, self.sign_out_and_in]
        self.joined: list[str] = []

    def accept_invitation(self) -> bool | None:
        portal.over.wait(1)
        link = self.new_link()
        if link is None:
            return None
        self.email, path = link
        self.cookies.clear()
        page = self.ask(path)
        if page.status == 404:
            return False  # revoked meanwhile
        answer = self.fill(page, path, name="Guest", password=PASSWORD)
        if answer is None:  # a lost response created the user, and this is another invitation
            self.sign_in()
            answer = self.fill(self.ask(path), path)
        if answer is None or answer.status != 302:
            return False
        promises.append(("joined", self.email))
        self.joined.append(self.email)
        return True

    def new_link(self) -> tuple[str, str] | None:
        for message in portal.mails():
            if message["Message-ID"] not in self.read:
                self.read.add(message["Message-ID"])
                link = re.search(r"(/invitations/[^\s/]+/)", message.get_content())
                if link:
                    return str(message["To"]), link[1]
        return None

    def browse(self) -> bool | None:
        if not self.joined:
            portal.over.wait(0.5)
            return None
        if self.random.random() < 0.2:
            self.email = self.random.choice(self.joined)
            self.sign_in()
        return self.open_page()

    def sign_out_and_in(self) -> bool | None:
        return super().sign_out_and_in() if self.joined else None


class Administrator(Actor):
    def __init__(self, user: User, seed: int) -> None:
        super().__init__(user.email, seed)
        self.packages = [str(pk) for pk in Package.objects.values_list("pk", flat=True)]
        self.actions = 2 * [self.switch_automatic_backups, self.open_admin_page, self.open_admin_page]
        self.actions += [self.plan_price, self.switch_package, self.change_machine_price, self.change_default_schedule]
        self.actions += [self.grant_credits, self.delete_automatic_backups, self.switch_many, self.sign_out_and_in]

    def send(self, path: str, **answers: object) -> bool | None:
        """Submit a form of Django admin, which is replayed if the password is asked for in between."""
        page = self.open(path)
        answer = self.fill(page, path, **answers)
        return None if answer is None else self.allowed(answer)

    def post(self, path: str, **answers: object) -> bool:
        return self.allowed(self.ask(path, {name: [str(value)] for name, value in answers.items()}))

    def allowed(self, answer: Page) -> bool:
        if answer.status == 302 and answer.location == "/accounts/reauthenticate/":
            page = self.ask(answer.location)
            self.fill(page, answer.location, password=PASSWORD)
            return False  # done by the next action
        return answer.status == 302

    def open(self, path: str) -> Page:
        page = self.ask(path)
        if page.status == 302 and page.location == "/accounts/login/":
            self.sign_in()
            page = self.ask(path)
        return page

    def a_row(self, model: str) -> str:
        paths = self.open(f"/admin/{model}/").find(rf'href="(/admin/{model}/(?:{UUID}|[\w-]+)/change/)')
        return self.random.choice(paths) if paths else ""

    def open_admin_page(self) -> bool:
        return self.open(self.random.choice(ADMIN_PAGES)).status == 200

    def switch_automatic_backups(self) -> bool | None:
        path = self.a_row("inventory/virtualmachine")
        if not path:
            return None
        answers = {"on": self.random.choice([0, 1, 1]), "confirmed": "yes"}
        return self.post(path.replace("change/", "automatic-backups/"), **answers)

    def switch_many(self) -> bool | None:
        path = "/admin/inventory/virtualmachine/"
        ids = [path.split("/")[4] for path in self.open(path).find(rf'href="({path}{UUID}/change/)')]
        if len(ids) < 3:
            return None
        action = self.random.choice(["switch_many_on", "switch_many_off"])
        chosen = {"_selected_action": self.random.sample(ids, 3), "action": [action], "confirmed": ["1"]}
        return self.allowed(self.ask(path, chosen))

    def delete_automatic_backups(self) -> bool | None:
        path = self.a_row("inventory/virtualmachine")
        return self.post(path.replace("change/", "automatic-backups/delete/")) if path else None

    def change_machine_price(self) -> bool | None:
        path = self.a_row("inventory/virtualmachine")
        return self.send(path, hourly_price_micro=self.random.randrange(10, 99)) if path else None

    def change_default_schedule(self) -> bool | None:
        path = self.a_row("inventory/location")
        soon = portal.portal_time() + timedelta(hours=6, minutes=30 + self.random.choice([1, 2, 60]))
        answers = {"default_at": f"{soon:%H:%M}", "default_retention_count": self.random.choice([1, 2])}
        return self.send(path, **answers) if path else None

    def plan_price(self) -> bool | None:
        """Plan a price that starts in a few seconds of the portal's clock."""
        path = f"/admin/billing/package/{self.random.choice(self.packages)}/change/"
        fields = self.open(path).form(path)
        if fields is None:
            return None
        count = int(fields["versions-TOTAL_FORMS"][0])  # the page's script adds a row
        row = f"versions-{count}"
        fields = {name: values for name, values in fields.items() if "__prefix__" not in name}
        fields |= {"versions-TOTAL_FORMS": [str(count + 1)]}
        starts_at = portal.portal_time() + timedelta(seconds=self.random.randint(3, 30))
        answers = {f"{row}-starts_at_0": f"{starts_at:%Y-%m-%d}", f"{row}-starts_at_1": f"{starts_at:%H:%M:%S}"}
        answers[f"{row}-rate"] = f"0.{self.random.randrange(1, 9)}"
        return self.allowed(self.ask(path, fields | {name: [value] for name, value in answers.items()}))

    def switch_package(self) -> bool | None:
        """Deactivate a package, and activate it again a moment later. Requests in between are refused."""
        path = f"/admin/billing/package/{self.random.choice(self.packages)}/change/"
        outcome = None
        for active in (False, True):
            fields = self.open(path).form(path)
            if fields is None:
                return None
            fields.pop("active", None)
            outcome = self.allowed(self.ask(path, fields | ({"active": ["on"]} if active else {})))
            portal.over.wait(0.5)
        return outcome

    def grant_credits(self) -> bool | None:
        path = self.a_row("billing/customeraccount")
        amount = self.random.randrange(1, 20)
        outcome = (
            self.send(path.replace("change/", "grant/"), amount=amount, reason="Sorry for the storm") if path else None
        )
        if outcome:
            promises.append(("granted", path.split("/")[4]))
        return outcome
