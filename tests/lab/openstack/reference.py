"""Sends the same requests (STEPS) to the portal and to Cinder, and compares the answers.

Each answer becomes {field: value}: its status, the headers that clients read, and each field of its JSON. Values that must
differ get a placeholder, such as `<data>` for the ID of the volume that STEPS remembers as `data`. Error messages aren't
compared.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from tests.lab.openstack.lab import wait_until

LATEST = "3.40"  # of the portal
HEADERS = ("Content-Type", "OpenStack-API-Version", "Vary", "Retry-After", "X-OpenStack-Request-Id")
OWN_NAME = re.compile(r"^(volume-[0-9a-f]{8}|.+-\d{4}-\d\d-\d\d)$")  # suggested by the portal
TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z?(\+00:00)?")
ID = re.compile(r"[0-9a-f]{8}-?([0-9a-f]{4}-?){3}[0-9a-f]{12}")
ABSENT = "–"
SETTLED = {"available", "in-use", "error", "error_deleting", "error_extending", "error_restoring"}
UNKNOWN = "11111111-2222-4333-8444-555555555555"
ITEM = re.compile(r"^(volume|snapshot|volume_type)s\.\d+\.")  # of a list
QUOTA = re.compile(r"^(quota_set\.\w+?(_<type>)?)\.(limit|in_use|reserved)$")


@dataclass
class Call:
    label: str
    method: str
    path: str
    body: Any = None
    version: str | None = LATEST
    remember: str = ""  # a name for the returned object: later steps use its ID as {name}
    discard: bool = False  # delete the returned object, because only one of the services may return one
    headers: dict[str, str] = field(default_factory=dict)


@dataclass
class Wait:
    """Wait until an object has a status that lasts, or is gone."""

    kind: str
    name: str
    gone: bool = False


@dataclass
class Arrange:
    """Call a method of the peer, for what the API can't do."""

    method: str
    values: dict[str, Any]


class Peer:
    """The portal or Cinder. `storage` is the SDK's proxy of its Block Storage."""

    def __init__(self, storage: Any, *, zone: str, volume_type: str) -> None:
        self.storage, session = storage, storage.session
        self.placeholders = {session.get_project_id(): "<project>", session.get_user_id(): "<user>"}
        self.endpoint = storage.get_endpoint()
        self.words = {zone: "<zone>", volume_type: "<type>"}
        self.host = re.sub("(//[^/]+).*", r"\1", self.endpoint)
        self.ids = {"unknown": UNKNOWN, "zone": zone, "project": session.get_project_id()}

    def run(self, steps: list[Any]) -> dict[str, dict[str, str]]:
        """Run the steps, and return {label of a call: {field: value}}."""
        answers = {}
        for step in steps:
            match step:
                case Call():
                    assert step.label not in answers, f"two calls are called {step.label}"
                    answers[step.label] = self.call(step)
                case Wait():
                    self.wait(step)
                case Arrange():
                    getattr(self, step.method)(**step.values)
        return answers

    def request(self, method: str, path: str, body: Any = None, version: str | None = LATEST, **headers: str) -> Any:
        return self.storage.request(
            path,
            method,
            json=body,
            microversion=version,
            headers=headers,
            authenticated="X-Auth-Token" not in headers,
            raise_exc=False,
            connect_retries=2,  # Cinder closes the connection of a body that is too large.
        )

    def call(self, call: Call) -> dict[str, str]:
        body = fill(call.body, self.ids)
        answer = self.request(call.method, call.path.format(**self.ids), body, call.version, **call.headers)
        content = answer.json() if answer.content.startswith(b"{") else {}
        if call.remember:
            assert answer.ok, f"{call.label}: {answer.text}"
            [item] = content.values()
            self.ids[call.remember] = item["id"]
            self.placeholders[item["id"]] = f"<{call.remember}>"
        if call.discard and answer.ok:
            [(kind, item)] = content.items()
            self.ids["discarded"] = item["id"]
            self.wait(Wait(kind, "discarded"))
            self.request("DELETE", f"/{kind}s/{item['id']}")
            self.wait(Wait(kind, "discarded", gone=True))
        lines = {"status": str(answer.status_code)}
        for name in HEADERS:
            if name in answer.headers:
                lines[f"header {name}"] = self.reduce_header(name, answer.headers[name])
        return lines | {self.reduce_path(path): self.reduce(value) for path, value in flatten(content)}

    def wait(self, wait: Wait) -> None:
        path = f"/{wait.kind}s/{self.ids[wait.name]}"

        def is_done() -> bool:
            answer = self.request("GET", path)
            if wait.gone or answer.status_code != 200:
                return bool(wait.gone and answer.status_code == 404)
            return answer.json()[wait.kind]["status"] in SETTLED

        assert wait_until(is_done, seconds=180), f"{wait.name} is not done"

    def fill_quota(self, resource: str) -> None:
        quotas = self.request("GET", f"/os-quota-sets/{self.ids['project']}?usage=true").json()["quota_set"]
        unlimited = {"snapshots": -1, "volumes": -1, "gigabytes": -1}
        self.set_quota(**unlimited | {resource: quotas[resource]["in_use"]})

    def set_quota(self, **limits: int) -> None:
        raise NotImplementedError

    def reduce(self, value: Any) -> str:
        """Return the value as text, with placeholders."""
        if not isinstance(value, str):
            return repr(value)
        text = value.replace(self.endpoint.rstrip("/"), "<endpoint>")
        for value, placeholder in sorted(self.placeholders.items(), key=lambda pair: len(pair[0]), reverse=True):
            text = text.replace(value, placeholder).replace(value.replace("-", ""), placeholder)
        text = OWN_NAME.sub("<own name>", self.words.get(text, text))
        text = ID.sub("<id>", TIME.sub("<time>", text)).replace("<endpoint>/<project>", "<endpoint>")
        return text.replace(self.host, "<host>")

    def reduce_header(self, name: str, value: str) -> str:
        """Return the part of a header that OpenStack's clients use."""
        if name == "Vary":  # The portal's pages depend on more.
            return "OpenStack-API-Version" if "OpenStack-API-Version" in value else ABSENT
        return self.reduce(value).partition(";")[0]

    def reduce_path(self, path: str) -> str:
        """Give the quotas of both services' volume types the same name."""
        return re.sub("_(ceph|__DEFAULT__)", "_<type>", path)


def fill(value: Any, ids: dict[str, str]) -> Any:
    """Replace each string `{name}` in a body by the ID of that name."""
    if isinstance(value, dict):
        return {name: fill(part, ids) for name, part in value.items()}
    if isinstance(value, str) and value.startswith("{"):
        return value.format(**ids)
    return value


def flatten(content: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield each value of a JSON document with its path, `volumes.0.name`."""
    items = content.items() if isinstance(content, dict) else enumerate(content)
    for name, value in items:
        below = f"{path}.{name}" if path else str(name)
        if name == "message":
            yield below, "<text>"
        elif str(name).startswith("1cng:"):
            yield f"{path}.1cng:…", "<text>"
        elif name == "metadata" and not value:
            continue
        elif isinstance(value, dict | list) and value:
            yield from flatten(value, below)
        else:
            yield below, value


def compare(theirs: dict[str, dict[str, str]], ours: dict[str, dict[str, str]]) -> dict[tuple[str, ...], list[str]]:
    """Return {(field, Cinder's value, the portal's): labels of the calls with this difference}.

    If the status differs, the field is the label of the call, and nothing else of it is compared. Otherwise the same field
    of the same kind of object is one row for all calls. A value that only one service has is shown as `present`. Of
    Cinder's errors in HTML, only the status is compared.
    """
    rows: dict[tuple[str, ...], list[str]] = {}
    for label, cinder in theirs.items():
        portal = ours[label]
        if cinder["status"] != portal["status"]:
            rows.setdefault((label, cinder["status"], portal["status"]), []).append(label)
            continue
        if int(cinder["status"]) >= 400 and cinder["header Content-Type"] == "text/html":
            continue
        for path in sorted(cinder.keys() | portal.keys()):
            before, after = cinder.get(path, ABSENT), portal.get(path, ABSENT)
            if before != after:
                if ABSENT in (before, after):
                    before, after = (value if value == ABSENT else "present" for value in (before, after))
                values = (re.sub("/<[a-z]+>", "/<id>", value) for value in (before, after))
                place = QUOTA.sub(r"\1", re.sub(r"\.\d+\b", "[]", ITEM.sub(r"\1.", path)))
                rows.setdefault((place, *values), []).append(label)
    return rows


def volume(**values: Any) -> dict[str, Any]:
    return {"volume": values}


def snapshot(**values: Any) -> dict[str, Any]:
    return {"snapshot": values}


STEPS: list[Any] = [
    # Types, zones, limits and empty lists
    Arrange("set_quota", {"snapshots": -1, "volumes": -1, "gigabytes": -1}),
    Call("list the volume types", "GET", "/types"),
    Call("show an unknown volume type", "GET", "/types/{unknown}"),
    Call("list the availability zones", "GET", "/os-availability-zone"),
    Call("show the limits", "GET", "/limits"),
    Call("show the quotas", "GET", "/os-quota-sets/{project}"),
    Call("show the use of the quotas", "GET", "/os-quota-sets/{project}?usage=true"),
    Call("list no volumes", "GET", "/volumes"),
    Call("list no snapshots", "GET", "/snapshots/detail"),
    # Volumes
    Call(
        "create a volume",
        "POST",
        "/volumes",
        volume(name="data", size=1, description="a note", metadata={"use": "test"}, availability_zone="{zone}"),
        remember="data",
    ),
    Wait("volume", "data"),
    Call("show a volume", "GET", "/volumes/{data}"),
    Call("show a volume by 3.0", "GET", "/volumes/{data}", version=None),
    Call("create a volume by a size that is text", "POST", "/volumes", volume(name="more", size="2"), remember="more"),
    Wait("volume", "more"),
    Call("create a volume without a name", "POST", "/volumes", volume(size=1), remember="nameless"),
    Wait("volume", "nameless"),
    Call("name it", "PUT", "/volumes/{nameless}", volume(name="late", description="")),
    Call("create a volume without a size", "POST", "/volumes", volume(name="x")),
    Call("create a volume of no size", "POST", "/volumes", volume(name="x", size=0)),
    Call("create a volume of half a gigabyte", "POST", "/volumes", volume(name="x", size=0.5)),
    Call("create a volume of a size in words", "POST", "/volumes", volume(name="x", size="many")),
    Call("create a volume in an unknown zone", "POST", "/volumes", volume(name="x", size=1, availability_zone="moon")),
    Call("create a volume of an unknown type", "POST", "/volumes", volume(name="x", size=1, volume_type="gold")),
    Call("create a volume with a name of 256 characters", "POST", "/volumes", volume(name="x" * 256, size=1)),
    Call(
        "create a volume with an unknown field",
        "POST",
        "/volumes",
        volume(name="odd", size=1, colour="red"),
        discard=True,
    ),
    Call(
        "create a volume with numbers as properties",
        "POST",
        "/volumes",
        volume(name="x", size=1, metadata={"a": 1}),
        discard=True,
    ),
    Call("create a volume from a volume", "POST", "/volumes", volume(name="x", source_volid="{data}"), discard=True),
    Call("create a volume from an unknown snapshot", "POST", "/volumes", volume(name="x", snapshot_id="{unknown}")),
    Call("create without an object", "POST", "/volumes", {"name": "x"}),
    Call("create from a list", "POST", "/volumes", []),
    Call("show an unknown volume", "GET", "/volumes/{unknown}"),
    Call("show a volume whose ID is no UUID", "GET", "/volumes/nonsense"),
    Call("delete an unknown volume", "DELETE", "/volumes/{unknown}"),
    Call("update an unknown volume", "PUT", "/volumes/{unknown}", volume(name="x")),
    Call("update a volume with nothing", "PUT", "/volumes/{data}", volume()),
    Call("update a volume's size", "PUT", "/volumes/{data}", volume(size=5)),
    Call("rename a volume", "PUT", "/volumes/{data}", volume(name="data 1", description="another note")),
    # Lists of volumes
    Call("list the volumes", "GET", "/volumes?sort=name:asc"),
    Call("list the volumes in detail", "GET", "/volumes/detail?sort=name:asc"),
    Call("list the volumes in detail by 3.0", "GET", "/volumes/detail?sort=name:asc", version=None),
    Call("list the newest volume", "GET", "/volumes?limit=1"),
    Call("list the volumes after it", "GET", "/volumes?sort=created_at:desc&marker={nameless}"),
    Call("list the volumes by size", "GET", "/volumes?sort_key=size&sort_dir=desc&limit=1"),
    Call("list the volumes by two keys", "GET", "/volumes?sort=size:desc,name:desc"),
    Call("list no page of volumes", "GET", "/volumes?limit=0"),
    Call("list the volumes from the second on", "GET", "/volumes?sort=name:asc&offset=1"),
    Call("filter the volumes by name", "GET", "/volumes?name=more"),
    Call("filter the volumes by another name", "GET", "/volumes?name=nobody"),
    Call("filter the volumes by status", "GET", "/volumes?status=available&sort=name:asc"),
    Call("filter the volumes by status error", "GET", "/volumes?status=error"),
    Call("filter the volumes by zone", "GET", "/volumes?availability_zone={zone}&sort=name:asc"),
    Call("filter the volumes by properties", "GET", "/volumes?metadata=%7B%27use%27%3A%20%27test%27%7D"),
    Call("filter the volumes by an unknown filter", "GET", "/volumes?colour=red"),
    Call("filter the volumes by an unknown filter by 3.0", "GET", "/volumes?colour=red&sort=name:asc", version=None),
    Call("list the volumes with their number", "GET", "/volumes?limit=1&with_count=true", version="3.40"),
    Call("list with a limit that is no number", "GET", "/volumes?limit=many"),
    Call("list with a negative limit", "GET", "/volumes?limit=-1"),
    Call("list after an unknown marker", "GET", "/volumes?marker={unknown}"),
    Call("list by an unknown key", "GET", "/volumes?sort=colour"),
    Call("list in an unknown direction", "GET", "/volumes?sort=name:up"),
    # Properties of a volume
    Call("show the properties of a volume", "GET", "/volumes/{data}/metadata"),
    Call("add properties to a volume", "POST", "/volumes/{data}/metadata", {"metadata": {"a": "1", "b": "2"}}),
    Call("show a property of a volume", "GET", "/volumes/{data}/metadata/a"),
    Call("show an unknown property of a volume", "GET", "/volumes/{data}/metadata/z"),
    Call("set a property of a volume", "PUT", "/volumes/{data}/metadata/a", {"meta": {"a": "3"}}),
    Call("set a property by another name", "PUT", "/volumes/{data}/metadata/a", {"meta": {"b": "3"}}),
    Call("delete a property of a volume", "DELETE", "/volumes/{data}/metadata/b"),
    Call("delete an unknown property of a volume", "DELETE", "/volumes/{data}/metadata/z"),
    Call("replace the properties of a volume", "PUT", "/volumes/{data}/metadata", {"metadata": {"c": "4"}}),
    Call("add a property without a name", "POST", "/volumes/{data}/metadata", {"metadata": {"": "1"}}),
    Call("add a property of 256 characters", "POST", "/volumes/{data}/metadata", {"metadata": {"a": "x" * 256}}),
    Call("add properties that are a list", "POST", "/volumes/{data}/metadata", {"metadata": ["a"]}),
    Call("set a property of the portal", "PUT", "/volumes/{more}/metadata/1cng:x", {"meta": {"1cng:x": "1"}}),
    Call("delete a property of the portal", "DELETE", "/volumes/{more}/metadata/1cng:x"),
    # Extending a volume
    Call("extend a volume", "POST", "/volumes/{data}/action", {"os-extend": {"new_size": 2}}),
    Wait("volume", "data"),
    Call("show an extended volume", "GET", "/volumes/{data}"),
    Call("extend a volume to its size", "POST", "/volumes/{data}/action", {"os-extend": {"new_size": 2}}),
    Call("extend a volume to less", "POST", "/volumes/{data}/action", {"os-extend": {"new_size": 1}}),
    Call("extend a volume to nothing", "POST", "/volumes/{data}/action", {"os-extend": {}}),
    Call("extend an unknown volume", "POST", "/volumes/{unknown}/action", {"os-extend": {"new_size": 2}}),
    Call("an unknown action", "POST", "/volumes/{data}/action", {"os-fly": {}}),
    # Snapshots
    Call(
        "create a snapshot",
        "POST",
        "/snapshots",
        snapshot(volume_id="{data}", name="first", description="a note", metadata={"job": "cron"}),
        remember="first",
    ),
    Wait("snapshot", "first"),
    Call("show a snapshot", "GET", "/snapshots/{first}"),
    Call("show a snapshot by 3.0", "GET", "/snapshots/{first}", version=None),
    Call(
        "create a snapshot by force",
        "POST",
        "/snapshots",
        snapshot(volume_id="{data}", name="second", force=True),
        remember="second",
    ),
    Wait("snapshot", "second"),
    Call("create a snapshot without a name", "POST", "/snapshots", snapshot(volume_id="{more}"), remember="nameless"),
    Wait("snapshot", "nameless"),
    Call("name that snapshot", "PUT", "/snapshots/{nameless}", snapshot(name="third", description="")),
    Call("create a snapshot of nothing", "POST", "/snapshots", snapshot(name="x")),
    Call("create a snapshot of an unknown volume", "POST", "/snapshots", snapshot(volume_id="{unknown}", name="x")),
    Call("create a snapshot of a number", "POST", "/snapshots", snapshot(volume_id=7, name="x")),
    Call(
        "create a snapshot with a name of 256 characters",
        "POST",
        "/snapshots",
        snapshot(volume_id="{data}", name="x" * 256),
    ),
    Call(
        "create a snapshot with a wrong force",
        "POST",
        "/snapshots",
        snapshot(volume_id="{data}", force="perhaps"),
        discard=True,
    ),
    Call("show an unknown snapshot", "GET", "/snapshots/{unknown}"),
    Call("delete an unknown snapshot", "DELETE", "/snapshots/{unknown}"),
    Call("update a snapshot with nothing", "PUT", "/snapshots/{first}", snapshot()),
    Call("rename a snapshot", "PUT", "/snapshots/{first}", snapshot(name="first of all", description="b")),
    # Lists of snapshots
    Call("list the snapshots", "GET", "/snapshots?sort=name:asc"),
    Call("list the snapshots in detail", "GET", "/snapshots/detail?sort=name:asc"),
    Call("list the snapshots by name by 3.0", "GET", "/snapshots?sort=name:asc", version=None),
    Call("list the snapshots in detail by 3.0", "GET", "/snapshots/detail?sort_key=created_at", version=None),
    Call("list the newest snapshot", "GET", "/snapshots?limit=1"),
    Call("list the snapshots after it", "GET", "/snapshots?marker={nameless}"),
    Call("filter the snapshots by volume", "GET", "/snapshots?volume_id={data}&sort=name:asc"),
    Call("filter the snapshots by name", "GET", "/snapshots?name=second"),
    Call("filter the snapshots by status", "GET", "/snapshots?status=error"),
    Call("filter the snapshots by an unknown filter", "GET", "/snapshots?colour=red"),
    Call("list the snapshots after an unknown marker", "GET", "/snapshots?marker={unknown}"),
    Call("list the snapshots by an unknown key", "GET", "/snapshots?sort=colour"),
    # Properties of a snapshot
    Call("show the properties of a snapshot", "GET", "/snapshots/{first}/metadata"),
    Call("add properties to a snapshot", "POST", "/snapshots/{first}/metadata", {"metadata": {"a": "1", "b": "2"}}),
    Call("show a property of a snapshot", "GET", "/snapshots/{first}/metadata/a"),
    Call("set a property of a snapshot", "PUT", "/snapshots/{first}/metadata/a", {"meta": {"a": "3"}}),
    Call("delete a property of a snapshot", "DELETE", "/snapshots/{first}/metadata/b"),
    Call("delete an unknown property of a snapshot", "DELETE", "/snapshots/{first}/metadata/z"),
    Call("replace the properties of a snapshot", "PUT", "/snapshots/{first}/metadata", {"metadata": {"c": "4"}}),
    # Volumes from a snapshot, and reverting
    Call(
        "create a volume from a snapshot",
        "POST",
        "/volumes",
        volume(name="copy", snapshot_id="{second}"),
        remember="copy",
    ),
    Wait("volume", "copy"),
    Call("show a volume from a snapshot", "GET", "/volumes/{copy}"),
    Call(
        "create a larger volume from a snapshot",
        "POST",
        "/volumes",
        volume(name="larger", size=3, snapshot_id="{second}"),
        remember="larger",
    ),
    Wait("volume", "larger"),
    Call(
        "create a smaller volume from a snapshot",
        "POST",
        "/volumes",
        volume(name="smaller", size=1, snapshot_id="{second}"),
    ),
    Call("revert a volume", "POST", "/volumes/{data}/action", {"revert": {"snapshot_id": "{second}"}}),
    Wait("volume", "data"),
    Call("revert a volume by 3.39", "POST", "/volumes/{data}/action", {"revert": {"snapshot_id": "{second}"}}, "3.39"),
    Call(
        "revert a volume to a snapshot of another",
        "POST",
        "/volumes/{data}/action",
        {"revert": {"snapshot_id": "{nameless}"}},
    ),
    Call(
        "revert a volume to an unknown snapshot",
        "POST",
        "/volumes/{data}/action",
        {"revert": {"snapshot_id": "{unknown}"}},
    ),
    Call(
        "revert a volume to an earlier snapshot",
        "POST",
        "/volumes/{data}/action",
        {"revert": {"snapshot_id": "{first}"}},
    ),
    Wait("volume", "data"),
    # Quotas
    Arrange("fill_quota", {"resource": "snapshots"}),
    Call("create a snapshot beyond the quota", "POST", "/snapshots", snapshot(volume_id="{data}", name="beyond")),
    Arrange("fill_quota", {"resource": "volumes"}),
    Call("create a volume beyond the quota", "POST", "/volumes", volume(name="beyond", size=1)),
    Arrange("fill_quota", {"resource": "gigabytes"}),
    Call("create more gigabytes than the quota", "POST", "/volumes", volume(name="beyond", size=9)),
    Call("extend a volume beyond the quota", "POST", "/volumes/{data}/action", {"os-extend": {"new_size": 99}}),
    Arrange("set_quota", {"snapshots": -1, "volumes": -1, "gigabytes": -1}),
    # An attached volume
    Arrange("attach", {"name": "more"}),
    Call("show an attached volume", "GET", "/volumes/{more}"),
    Call("filter the volumes that are in use", "GET", "/volumes?status=in-use"),
    Call("delete an attached volume", "DELETE", "/volumes/{more}"),
    Call("revert an attached volume", "POST", "/volumes/{more}/action", {"revert": {"snapshot_id": "{nameless}"}}),
    Call(
        "create a snapshot of an attached volume",
        "POST",
        "/snapshots",
        snapshot(volume_id="{more}", name="used"),
        discard=True,
    ),
    Call("extend an attached volume", "POST", "/volumes/{more}/action", {"os-extend": {"new_size": 4}}),
    Wait("volume", "more"),
    Call("show the limits in use", "GET", "/limits"),
    # Other requests
    Call("an unknown token", "GET", "/volumes", headers={"X-Auth-Token": "nonsense"}),
    Call("microversion 3.41", "GET", "/limits", version="3.41"),
    Call("microversion 3.99", "GET", "/limits", version="3.99"),
    Call("microversion 2.1", "GET", "/limits", version=None, headers={"OpenStack-API-Version": "volume 2.1"}),
    Call("microversion x", "GET", "/limits", version=None, headers={"OpenStack-API-Version": "volume x"}),
    Call("the latest microversion", "GET", "/types", version=None, headers={"OpenStack-API-Version": "volume latest"}),
    Call("a body of 200 kB", "POST", "/snapshots", snapshot(volume_id="{data}", name="x" * 200_000)),
    Call("delete all volumes", "DELETE", "/volumes"),
    Call("patch a snapshot", "PATCH", "/snapshots/{first}", {}),
    Call("an unknown path", "GET", "/nonsense"),
    # Deletions
    Call("delete a volume that has snapshots", "DELETE", "/volumes/{data}"),
    Call("delete a snapshot", "DELETE", "/snapshots/{second}"),
    Wait("snapshot", "second", gone=True),
    Call("show a deleted snapshot", "GET", "/snapshots/{second}"),
    Call("delete a volume", "DELETE", "/volumes/{copy}"),
    Wait("volume", "copy", gone=True),
    Call("show a deleted volume", "GET", "/volumes/{copy}"),
    Call("delete it with its snapshots", "DELETE", "/volumes/{larger}?cascade=true"),
]
