"""The files of deploy/: units that systemd accepts, that are sandboxed and start the portal; alerts on existing metrics."""

import http.client
import json
import os
import re
import runpy
import shlex
import shutil
import signal
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Event, Thread

import pytest
import yaml
from django.conf import settings
from django.core.management import get_commands
from django.db import connection
from django.test import Client
from django.utils import timezone
from pytest_django import Settings

from cng_portal.monitoring.models import Lease, Process
from snapshots.models import Operation
from snapshots.monitoring.storage import check_storage
from snapshots.operations import lifecycle
from tests.factories import LocationFactory, OperationFactory, SnapshotFactory

DEPLOY = Path(settings.BASE_DIR, "deploy")
UNITS = DEPLOY / "systemd"
SERVICES = sorted(UNITS.glob("*.service"))
RULES = yaml.safe_load((DEPLOY / "prometheus/portal.rules.yml").read_text())["groups"][0]["rules"]
TOKEN = "a-token-for-prometheus"


def values(unit: Path, name: str) -> list[str]:
    return re.findall(rf"^{name}=(.*)$", unit.read_text(), re.MULTILINE)


def commands(unit: Path) -> list[list[str]]:
    """Return the commands of the unit, with this checkout in place of /opt/portal."""
    lines = values(unit, "ExecStartPre") + values(unit, "ExecStart")
    return [[sys.executable if word.endswith("/python") else word for word in shlex.split(line)] for line in lines]


@pytest.fixture
def units(tmp_path: Path) -> Path:
    """The systemd units as they are installed, for a portal in this checkout."""
    if not shutil.which("systemd-analyze"):
        pytest.skip("systemd-analyze is not installed")
    folder = tmp_path / "units"
    shutil.copytree(UNITS, folder)
    for path in folder.rglob("*"):
        if path.is_file():
            path.write_text(path.read_text().replace("/opt/portal/.venv/bin/python", sys.executable))
    return folder


def analyze(units: Path, *arguments: str) -> subprocess.CompletedProcess:
    environment = os.environ | {"SYSTEMD_UNIT_PATH": f"{units}:"}
    return subprocess.run(["systemd-analyze", *arguments], env=environment, capture_output=True, text=True, check=False)


def test_systemd_accepts_every_unit_without_a_word(units: Path) -> None:
    paths = [str(path).replace("@.", "@1.") for path in units.iterdir() if path.is_file()]
    result = analyze(units, "verify", "--man=no", *paths)
    assert (result.returncode, result.stdout + result.stderr) == (0, "")


@pytest.mark.parametrize("service", SERVICES, ids=lambda path: path.stem)
def test_every_service_is_sandboxed_as_far_as_possible(units: Path, service: Path) -> None:
    """systemd's own score, from 0 (can do nothing) to 10. A service without a sandbox has 9.6."""
    path = str(units / service.name).replace("@.", "@1.")
    result = analyze(units, "security", "--offline=true", "--threshold=20", "--no-pager", path)
    exposure = re.search(r"Overall exposure level for \S+: ([\d.]+)", result.stdout)
    assert exposure is not None, result.stderr
    assert float(exposure[1]) <= 2.0
    assert re.search(r"✓ NoNewPrivileges=", result.stdout)
    assert re.search(r"✓ ProtectSystem=", result.stdout)
    assert re.search(r"✓ User=/DynamicUser=", result.stdout)


def test_no_service_reads_the_history_of_the_code() -> None:
    assert values(UNITS / "portal-.service.d/common.conf", "InaccessiblePaths") == ["-/opt/portal/.git"]


@pytest.mark.parametrize("service", SERVICES, ids=lambda path: path.stem)
def test_every_service_runs_an_existing_command(service: Path) -> None:
    for line in values(service, "ExecStart") + values(service, "ExecStartPre"):
        names = re.findall(r"manage\.py (\w+)", line)
        assert names or "-m gunicorn" in line
        assert set(names) <= get_commands().keys()


@pytest.mark.parametrize("failing", [(), ("fsck",), ("verify_billing",), ("fsck", "verify_billing")])
def test_the_weekly_check_runs_completely_and_reports_every_failure(failing: tuple[str, ...], tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\necho "$2"\ncase " {" ".join(failing)} " in *" $2 "*) exit 1;; esac\n')
    python.chmod(0o755)
    [line] = values(UNITS / "portal-check.service", "ExecStart")
    line = line.replace("/opt/portal/.venv/bin/python", str(python)).replace("$$", "$")  # as systemd does
    result = subprocess.run(shlex.split(line), capture_output=True, text=True, check=False)
    assert result.stdout.split() == ["fsck", "verify_billing"]
    assert result.returncode == (1 if failing else 0)


def test_the_target_starts_every_part() -> None:
    wanted = values(UNITS / "portal.target", "Wants")[0].split()
    assert {re.sub(r"@\d", "@", name) for name in wanted} == {
        "portal-web.service",
        "portal-worker@.service",
        "portal-scheduler.service",
    }


@pytest.fixture
def deployed(process_environment: dict[str, str], tmp_path: Path) -> Iterator[dict[str, str]]:
    """Start portal.target on two machines, with the settings of portal.env.example and three workers. Yields the
    environment of the first.
    """
    probes = [socket.create_server(("127.0.0.1", 0)) for _machine in range(2)]
    ports = [str(probe.getsockname()[1]) for probe in probes]
    for probe in probes:
        probe.close()
    example = (DEPLOY / "portal.env.example").read_text()
    filled = {
        "DATA_DIR": str(tmp_path / "var"),
        "DATABASE_URL": process_environment["DATABASE_URL"],
        "SECRET_KEY": "correct horse battery staple, and as long as it has to be",
        "METRICS_TOKEN": TOKEN,
        "WEB_WORKERS": "2",
    }
    text = re.sub(r"^([A-Z_]+)=(.*)$", lambda line: f"{line[1]}={filled.get(line[1], line[2])}", example, flags=re.M)
    (tmp_path / "portal.env").write_text(text)
    environment = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    environment |= {"ENV_FILE": str(tmp_path / "portal.env"), "STORAGE": process_environment["STORAGE"]}
    started: list[subprocess.Popen] = []
    log = (tmp_path / "log").open("w")
    try:
        for name, count in [("portal-web", 2), ("portal-worker@", 3), ("portal-scheduler", 2)]:
            *before, work = commands(UNITS / f"{name}.service")
            for command in before:
                subprocess.run(command, cwd=settings.BASE_DIR, env=environment, check=True)
            for number in range(count):
                own = environment | {"PORT": ports[number % 2]}
                started.append(subprocess.Popen(work, cwd=settings.BASE_DIR, env=own, stderr=log))
        yield environment | {"PORTS": " ".join(ports), "LOG": str(tmp_path / "log")}
        for process in started:
            process.send_signal(signal.SIGTERM)
        assert [process.wait(60) for process in started] == [0] * len(started)
    finally:
        for process in started:
            process.kill()
            process.wait()
        log.close()


def get(port: str, path: str, **headers: str) -> tuple[int, dict[str, str], str]:
    client = http.client.HTTPConnection("127.0.0.1", int(port), timeout=20)
    try:
        client.request("GET", path, headers=headers)
        answer = client.getresponse()
        return answer.status, dict(answer.getheaders()), answer.read().decode()
    except OSError:
        return 0, {}, ""
    finally:
        client.close()


def wait_for(condition: object, what: str) -> None:
    give_up = timezone.now() + timedelta(seconds=180)
    pause = Event()
    while not condition():  # type: ignore[operator]
        assert timezone.now() < give_up, what
        pause.wait(0.1)


@pytest.mark.django_db(transaction=True)
@pytest.mark.both_databases
def test_the_units_start_a_working_portal(deployed: dict[str, str], storage_root: Path) -> None:
    LocationFactory(code="1CNG-YGN-AZ01")
    ports = deployed["PORTS"].split()
    port = ports[0]

    def is_ready() -> bool:
        bodies = [get(port, "/readyz")[2] for port in ports]
        return all(body != "" and json.loads(body)["status"] == "ready" for body in bodies)

    wait_for(is_ready, "the portal does not get ready")

    # as the proxy does
    proxied = {"Host": "portal.example.com", "X-Forwarded-Proto": "https", "X-Forwarded-For": "203.0.113.9"}
    status, headers, page = get(port, "/accounts/login/", **proxied)
    assert status == 200
    assert "Sign in" in page
    assert "max-age=31536000" in headers["Strict-Transport-Security"]
    assert "__Host-csrftoken=" in headers["Set-Cookie"]
    style = re.search(r'href="(/static/portal\.[0-9a-f]+\.css)"', page)
    assert style is not None
    assert get(port, style[1], **proxied)[0] == 200
    # as strangers do
    assert get(port, "/accounts/login/", Host="portal.example.com")[0] == 301
    assert get(port, "/accounts/login/", **proxied | {"Host": "other.example.com"})[0] == 400

    snapshots = [SnapshotFactory() for _number in range(12)]
    for snapshot in snapshots:
        lifecycle.create_operation(kind="verify", snapshot=snapshot)  # whose data isn't in the storage, so they fail
    wait_for(lambda: not Operation.objects.active().exists(), "the workers do nothing")
    assert set(Operation.objects.values_list("state", "attempt")) == {("failed", 1)}

    status, _headers, body = get(port, "/metrics", Authorization=f"Bearer {TOKEN}")
    assert 'portal_processes{kind="worker"} 3.0' in body
    assert 'portal_processes{kind="scheduler"} 2.0' in body
    assert 'portal_operations_ended_last_hour{kind="verify",state="failed"} 12.0' in body
    assert Process.objects.count() == 5
    if connection.vendor == "postgresql":
        with connection.cursor() as cursor:
            cursor.execute(
                "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
            (connections,) = cursor.fetchone()
        processes = 4 + 3 + 2
        pool = re.search(r"^DATABASE_POOL=(\d+)$", (DEPLOY / "portal.env.example").read_text(), re.MULTILINE)
        assert pool is not None
        assert connections <= processes * int(pool[1])
    # one scheduler acts; when it is stopped, the other one does
    schedulers = {str(each.pk): each.pid for each in Process.objects.filter(kind=Process.Kind.SCHEDULER)}
    acting = Lease.objects.get(name="scheduler").holder
    assert acting in schedulers
    stopped = schedulers.pop(acting)
    os.kill(stopped, signal.SIGTERM)
    has_ended = os.WEXITED | os.WNOWAIT | os.WNOHANG
    wait_for(lambda: os.waitid(os.P_PID, stopped, has_ended), "the scheduler does not stop")
    wait_for(lambda: Lease.objects.get(name="scheduler").holder in schedulers, "nobody takes the lease over")
    lines = [json.loads(line) for line in Path(deployed["LOG"]).read_text().splitlines()]
    assert {line["level"] for line in lines} <= {"debug", "info", "warning"}
    of_the_page = [line for line in lines if line.get("request") == "GET /accounts/login/" and line["code"] == 200]
    assert of_the_page[0]["ip"] == "203.0.113.9"


@pytest.mark.django_db
def test_every_metric_in_a_rule_exists(client: Client, settings: Settings, storage_root: Path) -> None:
    settings.METRICS_TOKEN = TOKEN
    LocationFactory()
    OperationFactory()
    check_storage()
    client.get("/accounts/login/")
    text = client.get("/metrics", headers={"Authorization": f"Bearer {TOKEN}"}).content.decode()
    there = {line.split("{")[0].split(" ")[0] for line in text.splitlines() if not line.startswith("#")}
    labels = set(re.findall(r'(\w+="[^"]*")', text))

    for rule in RULES:
        names = set(re.findall(r"\bportal_\w+", rule["expr"]))
        assert names <= there, rule["alert"]
        wanted = set(re.findall(r'\b((?:kind|state)="[^"]*")', rule["expr"]))
        assert wanted <= labels, rule["alert"]
    watched = {name for rule in RULES for name in re.findall(r"\bportal_\w+", rule["expr"])}
    assert len(watched) >= 10


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["alert"])
def test_every_alert_explains_itself_and_what_to_do(rule: dict) -> None:
    assert rule["labels"]["severity"] in ("warning", "critical")
    assert rule["annotations"]["summary"].endswith((".", ")."))
    assert len(rule["annotations"]["action"]) > 40
    units = set(re.findall(r"portal-\w+", rule["annotations"]["action"]))
    assert all(list(UNITS.glob(f"{unit}*")) for unit in units), units


def test_prometheus_reads_the_rules_and_asks_the_web_machines() -> None:
    config = yaml.safe_load((DEPLOY / "prometheus/prometheus.yml").read_text())
    assert (DEPLOY / "prometheus" / config["rule_files"][0]).exists()
    job, _machines = config["scrape_configs"]
    assert int(job["scrape_timeout"].removesuffix("s")) > 10  # what settings.py waits for a connection
    assert any(f'job="{job["job_name"]}"' in rule["expr"] for rule in RULES)


def test_the_example_names_only_existing_settings() -> None:
    explained = set(re.findall(r"^#?([A-Z_]+)=", Path(settings.BASE_DIR, ".env.example").read_text(), re.MULTILINE))
    named = set(re.findall(r"^([A-Z_]+)=", (DEPLOY / "portal.env.example").read_text(), re.MULTILINE))
    assert named <= explained


def test_pg_dump_gets_a_connection_that_every_version_understands() -> None:
    example = (DEPLOY / "portal.env.example").read_text()
    assert "sslmode=verify-full" in example
    assert re.findall(r"sslrootcert=(\S*)$", example, re.MULTILINE) == ["/etc/ssl/certs/ca-certificates.crt"]


OPERATIONS = Path(settings.BASE_DIR, "docs/operations.md")


def test_the_readme_lists_files_that_exist() -> None:
    names = re.findall(r"^\| `([^`]+)` \|", (DEPLOY / "README.md").read_text(), re.MULTILINE)
    assert names
    for name in names:
        assert (DEPLOY / name).exists(), name


@pytest.mark.parametrize("guide", [DEPLOY / "README.md", OPERATIONS], ids=lambda path: path.name)
def test_the_guides_name_only_units_commands_and_settings_that_exist(guide: Path) -> None:
    text = guide.read_text()
    explained = re.findall(r"^#?([A-Z_]+)=", Path(settings.BASE_DIR, ".env.example").read_text(), re.MULTILINE)
    rules = (DEPLOY / "prometheus/portal.rules.yml").read_text()
    elsewhere = {"HTTPS_PROXY", "CONCURRENTLY"}
    for setting in set(re.findall(r"`([A-Z]{4,}[A-Z_]*)(?:=\w+)?`", text)) - elsewhere:
        assert setting in explained, setting
    for alert in re.findall(r"\bPortal[A-Z]\w+", text):
        assert f"alert: {alert}\n" in rules, alert
    for unit in re.findall(r"\bportal-[a-z]+(?:@\d)?(?:\.timer)?", text.replace("portal-backups", "")):
        assert list(UNITS.glob(re.sub(r"@\d", "@", unit) + "*")), unit
    for command in re.findall(r"manage\.py (\w+)", text):
        assert command in get_commands(), command


def test_the_proxy_sets_trusted_headers_and_hides_internal_urls() -> None:
    text = (DEPLOY / "nginx.conf").read_text()
    assert "proxy_set_header X-Forwarded-Proto $scheme;" in text
    assert "proxy_set_header X-Forwarded-For $remote_addr;" in text  # replaced, not appended
    assert re.search(r"location = /metrics\s+\{ return 404; \}", text)
    assert "$request_uri" not in text.split("log_format")[1].split(";")[0]
    for begins in re.findall(r"location [^{]*\{[^}]*proxy_pass", text):
        assert "limit_req zone=" in begins, begins


def test_timeouts_of_callers_exceed_those_of_callees() -> None:
    text = (DEPLOY / "nginx.conf").read_text()
    nginx = {name: int(seconds) for name, seconds in re.findall(r"^ *(\w+_timeout) (\d+)s;", text, re.MULTILINE)}
    gunicorn = runpy.run_path(str(settings.BASE_DIR / "gunicorn.conf.py"))
    stop = {name: int(values(UNITS / f"portal-{name}.service", "TimeoutStopSec")[0]) for name in ("web", "worker@")}
    scrape = yaml.safe_load((DEPLOY / "prometheus/prometheus.yml").read_text())["scrape_configs"][0]["scrape_timeout"]
    lock = re.search(r"lock_timeout=(\d+)s", (UNITS / "portal-migrate.service").read_text())
    assert lock is not None

    assert nginx["keepalive_timeout"] < gunicorn["keepalive"]
    assert gunicorn["graceful_timeout"] < stop["web"]
    assert settings.OPERATION_LEASE_SECONDS < stop["worker@"] and settings.SCHEDULER_LEASE_SECONDS < stop["worker@"]
    assert settings.DATABASE_TIMEOUT < int(scrape.removesuffix("s")) < nginx["proxy_read_timeout"]
    assert settings.SQLITE_TIMEOUT < nginx["proxy_read_timeout"]
    # the table has the same number
    rows = OPERATIONS.read_text().partition("## Timeouts")[2].partition("## ")[0]
    for name in ("keepalive_timeout", "proxy_connect_timeout", "proxy_read_timeout", "client_header_timeout"):
        assert re.search(rf"`{name}`.*\| {nginx[name]} s \|", rows), name
    assert f"`keepalive`) | {gunicorn['keepalive']} s |" in rows
    assert f"`graceful_timeout`) | {gunicorn['graceful_timeout']} s |" in rows
    assert f"| {settings.DATABASE_TIMEOUT} s, {settings.SQLITE_TIMEOUT} s |" in rows
    assert f"| Prometheus (`scrape_timeout`) | {scrape.removesuffix('s')} s |" in rows
    assert f"| {stop['web']} s |" in rows and f"| {lock[1]} s |" in rows


class SinglePortal(BaseHTTPRequestHandler):
    """Stands for a portal with one thread, which a client that sends slowly would occupy."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "4")
        self.end_headers()
        self.wfile.write(b"page")

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.do_GET()

    def log_message(self, format: str, *args: object) -> None:
        pass


@dataclass(frozen=True)
class Proxy:
    http_port: str
    https_port: str

    def connect(self) -> ssl.SSLSocket:
        connection = socket.create_connection(("127.0.0.1", int(self.https_port)), timeout=20)
        return ssl._create_unverified_context().wrap_socket(connection)

    def get(self, path: str, host: str = "portal.example.com") -> tuple[http.client.HTTPResponse, str]:
        context = ssl._create_unverified_context()
        client = http.client.HTTPSConnection("127.0.0.1", int(self.https_port), timeout=20, context=context)
        try:
            client.request("GET", path, headers={"Host": host})
            answer = client.getresponse()
            return answer, answer.read().decode()
        finally:
            client.close()


@pytest.fixture
def unused_port() -> str:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return str(probe.getsockname()[1])


@pytest.fixture
def single_portal() -> Iterator[str]:
    with HTTPServer(("127.0.0.1", 0), SinglePortal) as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield str(server.server_address[1])
        server.shutdown()
        thread.join()


@contextmanager
def nginx_before(portal_port: str, tmp_path: Path) -> Iterator[Proxy]:
    """Run nginx with deploy/nginx.conf on ports of its own."""
    nginx = shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin")
    if not nginx or not shutil.which("openssl"):
        pytest.skip("nginx or openssl is not installed")
    probes = [socket.create_server(("127.0.0.1", 0)) for _port in range(2)]
    http_port, https_port = (str(probe.getsockname()[1]) for probe in probes)
    for probe in probes:
        probe.close()
    names = ["-subj", "/CN=portal.example.com", "-keyout", tmp_path / "privkey.pem", "-out", tmp_path / "fullchain.pem"]
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", *names], check=True, capture_output=True
    )
    site = re.sub(r"^ *listen \[::\].*\n", "", (DEPLOY / "nginx.conf").read_text(), flags=re.MULTILINE)
    for original, replacement in {
        "/etc/letsencrypt/live/portal.example.com": str(tmp_path),
        "/var/log/nginx": str(tmp_path),
        "listen 80;": f"listen 127.0.0.1:{http_port};",
        "listen 443 ": f"listen 127.0.0.1:{https_port} ",
        "127.0.0.1:8000": f"127.0.0.1:{portal_port}",
    }.items():
        assert original in site
        site = site.replace(original, replacement)
    folders = "".join(
        f"{kind}_temp_path {tmp_path}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    config = tmp_path / "nginx.conf"
    config.write_text(f"daemon off; pid {tmp_path}/pid; events {{}} http {{ {folders} access_log off; {site} }}")
    with subprocess.Popen([nginx, "-c", config, "-e", tmp_path / "errors"]) as process:
        try:
            wait_for(lambda: get(http_port, "/metrics")[0], "nginx does not start")
            yield Proxy(http_port, https_port)
        finally:
            process.terminate()


@pytest.mark.parametrize("host", ["portal.example.com", "elsewhere.example"])
def test_the_proxys_own_responses_have_no_links_and_the_same_headers(
    host: str, unused_port: str, tmp_path: Path
) -> None:
    with nginx_before(unused_port, tmp_path) as proxy:
        assert get(proxy.http_port, "/metrics", Host=host)[0] == 404
        status, headers, _body = get(proxy.http_port, "/snapshots/?q=a", Host=host)
        assert (status, headers["Location"]) == (301, "https://portal.example.com/snapshots/?q=a")
        assert headers["Server"] == "nginx"  # and no version
        for path, expected in {"/metrics": 404, "/": 502}.items():
            answer, _body = proxy.get(path, host)
            assert answer.status == expected
            assert "max-age=31536000" in answer.headers["Strict-Transport-Security"]
            assert answer.headers["X-Content-Type-Options"] == "nosniff"
            assert "frame-ancestors 'none'" in answer.headers["Content-Security-Policy"]
            assert answer.headers["Content-Type"] == "text/html; charset=utf-8"


def test_requests_that_arrive_slowly_wait_in_the_proxy(single_portal: str, tmp_path: Path) -> None:
    half_sent = {
        "headers": b"GET / HTTP/1.1\r\nHost: portal.example.com\r\nX-",
        "body": b"POST / HTTP/1.1\r\nHost: portal.example.com\r\nContent-Length: 1000\r\n\r\nname=",
    }
    with nginx_before(single_portal, tmp_path) as proxy, ExitStack() as clients:
        for request in half_sent.values():
            for _number in range(40):
                clients.enter_context(proxy.connect()).sendall(request)
        answer, body = proxy.get("/")
        assert (answer.status, body) == (200, "page")
