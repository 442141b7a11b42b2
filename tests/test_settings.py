"""An invalid setting stops the start with one line that names it."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from django.conf import settings

from tests import forked


def manage(*arguments: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "manage.py", *arguments],
        cwd=settings.BASE_DIR,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.mark.parametrize("bind", ["0.0.0.0", "::", "8.8.8.8"])
def test_the_web_process_is_not_exposed_by_default(bind: str) -> None:
    result = forked.start("check", BIND=bind)
    assert result.returncode == 1
    assert f"BIND={bind} cannot be used: a few slow clients could block the web server for everybody." in result.stderr


def test_the_web_process_is_exposed_on_demand_or_to_a_private_network() -> None:
    assert manage("check", BIND="0.0.0.0", BIND_EXPOSED="true").returncode == 0
    assert manage("check", BIND="10.0.0.12").returncode == 0


@pytest.mark.parametrize(
    ("name", "value", "why"),
    [
        ("PORT", "abc", "it must be a whole number from 1 to 65535."),
        ("PORT", "70000", "it must be a whole number from 1 to 65535."),
        ("BIND", "everywhere", "it is not an IP address, such as 127.0.0.1 or 0.0.0.0."),
        ("DEBUG", "perhaps", "it must be true or false."),
        ("DATA_DIR", "/dev/null/portal", "the folder cannot be created (Not a directory)."),
        (
            "BREACHED_PASSWORDS",
            "/srv/portal/breached.txt",
            "it is not an address such as https://api.pwnedpasswords.com/range/.",
        ),
        (
            "BREACHED_PASSWORDS",
            "http://breaches.example.com/range/",
            "it is not an address such as https://api.pwnedpasswords.com/range/.",
        ),
        (
            "ACTIVITY_KEPT_DAYS",
            "90",
            "the database keeps entries for at least 365 days; 0 keeps them forever.",
        ),
        ("MFA_REQUIRED", "admins", "it must be one of nobody, owners, everyone."),
        ("LOG_LEVEL", "loud", "it must be one of DEBUG, INFO, WARNING, ERROR, CRITICAL."),
        ("OPERATION_LEASE_SECONDS", "-1", "it must be a whole number from 1 to 3600."),
        ("STORAGE", "local", "it is not JSON (Expecting value: line 1 column 1 (char 0))."),
        ("STORAGE", "[]", 'it has to look like {"alias": {"driver": "dotted.path", "options": {…}}}.'),
        (
            "STORAGE",
            '{"ceph": {}}',
            'the engine “ceph” has to look like {"alias": {"driver": "dotted.path", "options": {…}}}.',
        ),
    ],
)
def test_an_invalid_value_is_named_and_explained(name: str, value: str, why: str) -> None:
    result = forked.start("serve", **{name: value})

    assert result.returncode == 1
    assert result.stderr == f"{name}={value} cannot be used: {why}\n"


@pytest.mark.parametrize(
    ("name", "value", "why"),
    [
        ("SECRET_KEY", "hunter2", "it is shorter than 32 characters; leave it out to have one generated."),
        ("SECRET_KEY_FALLBACKS", "hunter2", "it is shorter than 32 characters; leave it out to have one generated."),
        (
            "DATABASE_URL",
            "hunter2",
            "give sqlite:////path/to/file or postgres://user:password@host:5432/name.",
        ),
        (
            "DATABASE_URL",
            "mysql://portal:hunter2@localhost/portal",
            "give sqlite:////path/to/file or postgres://user:password@host:5432/name.",
        ),
        ("EMAIL_URL", "hunter2", "give smtp+tls://user:password@host:587 or consolemail://."),
    ],
)
def test_a_value_that_may_hold_a_password_is_not_repeated(name: str, value: str, why: str) -> None:
    result = forked.start("serve", **{name: value})

    assert result.returncode == 1
    assert result.stderr == f"{name} cannot be used: {why}\n"


def test_a_removed_setting_is_reported() -> None:
    result = manage("serve", OWNER_MFA_REQUIRED="true")

    assert result.returncode == 1
    assert result.stderr == (
        "OWNER_MFA_REQUIRED was removed. Set MFA_REQUIRED to nobody, owners or everyone instead.\n"
    )


def test_an_empty_value_counts_as_missing() -> None:
    result = manage("diffsettings", "--output=unified", PORT="", DEBUG="", LOG_LEVEL="")

    assert "+ PORT = 8000" in result.stdout
    assert "+ DEBUG" not in result.stdout


@pytest.mark.parametrize(
    ("driver", "options", "why"),
    [
        ("snapshots.storage.tape.TapeDriver", {}, "the driver of “local” is not there"),
        (
            "snapshots.storage.contract.GIB",
            {},
            "“snapshots.storage.contract.GIB”, the driver of “local”, is no storage driver.",
        ),
        ("snapshots.storage.local.LocalDriver", {"rot": "/srv"}, "the options of “local”: got an unexpected keyword"),
    ],
)
def test_a_storage_engine_that_cannot_be_loaded_stops_the_start(driver: str, options: dict, why: str) -> None:
    result = manage("serve", STORAGE=json.dumps({"local": {"driver": driver, "options": options}}))

    assert result.returncode == 1
    assert f"STORAGE cannot be used: {why}" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_secret_is_generated_once_and_kept_in_the_data_folder(tmp_path: Path) -> None:
    show = ["shell", "--no-imports", "-c", "from django.conf import settings; print(settings.SECRET_KEY)"]

    first, second = (manage(*show, SECRET_KEY="", DATA_DIR=str(tmp_path)).stdout for _ in range(2))

    assert len(first.strip()) >= 50
    assert first == second == (tmp_path / "secret_key").read_text() + "\n"
    assert (tmp_path / "secret_key").stat().st_mode & 0o777 == 0o600


def test_the_environment_file_is_read_and_the_environment_goes_before_it(tmp_path: Path) -> None:
    file = tmp_path / "env"
    file.write_text("PORT=9001\nBIND=0.0.0.0\n")

    result = manage("diffsettings", "--output=unified", ENV_FILE=str(file), BIND="127.0.0.2")

    assert "+ PORT = 9001" in result.stdout
    assert "+ BIND = '127.0.0.2'" in result.stdout


def test_env_example_explains_every_setting_that_is_read() -> None:
    source = Path(settings.BASE_DIR, "cng_portal/settings.py").read_text()
    read = set(re.findall(r'read\(\s*"([A-Z_]+)"', source)) | {"ENV_FILE"}
    explained = set(re.findall(r"^#([A-Z_]+)=", Path(settings.BASE_DIR, ".env.example").read_text(), re.MULTILINE))

    assert explained == read
