"""OpenStack's own clients, unmodified, against the portal with a worker: from the page of the API to a snapshot and back.

They have an environment of their own, which `make test` creates from tests/client.txt. A storage's tests subclass
`ClientContract` and define the fixtures `worker` (a process) and `volume`: "data 1" of 1 GB, in a project that is invoiced.
"""

import json
import os
import subprocess
from collections.abc import Callable
from html import unescape
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings as django_settings
from django.test import Client
from django.urls import reverse

from cng_portal.inventory.models import Volume
from snapshots.models import Operation, Snapshot, State

PYTHON = django_settings.BASE_DIR / ".venv" / "client" / "bin" / "python"


def texts_of(page: str) -> list[str]:
    """Return the texts to copy."""
    return [unescape(part.partition("</code>")[0]) for part in page.split('<pre tabindex="0"><code>')[1:]]


def run_clients(folder: Path, clouds: str, commands: list[list[str]]) -> list[Any]:
    file = folder / "clouds.yaml"
    file.write_text(clouds)
    environment = os.environ | {"OS_CLIENT_CONFIG_FILE": str(file), "OS_CLOUD": "portal", "HOME": str(folder)}
    script = Path(__file__).with_name("client.py")
    done = subprocess.run(
        [PYTHON, script], input=json.dumps(commands), env=environment, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr
    results: list[Any] = json.loads(done.stdout)
    return results


@pytest.mark.skipif(not PYTHON.exists(), reason="`make .venv/.client` installs OpenStack's clients")
class ClientContract:
    def test_openstack_takes_a_snapshot_with_what_the_page_says_and_does_all_that_the_guide_lists(
        self,
        live_server: Any,
        worker: None,
        volume: Volume,
        settings: Any,
        client_for: Callable[..., Client],
        tmp_path: Path,
    ) -> None:
        settings.PORTAL_URL = live_server.url
        settings.RECYCLE_BIN_DAYS = 7
        user = volume.project.members.get()
        answers = {"name": "laptop", "project": volume.project_id, "role": "member", "valid_for": "90"}
        acts = ["snapshot", "volume", "restore", "delete", "bill"]
        page = client_for(user).post(reverse("api:new_credential"), answers | {"acts": acts}).text
        clouds, _install, _commands = texts_of(page)
        assert "openstack volume snapshot create --volume 'data 1' first-snapshot\n" in texts_of(page)[2]
        commands = """
            volume list
            volume snapshot create --volume DATA first-snapshot
            wait snapshot first-snapshot
            volume snapshot list
            volume snapshot set --name second --description NOTE --property job=nightly first-snapshot
            volume snapshot show second
            volume snapshot unset --property job second
            volume snapshot show second
            volume create --snapshot second copy
            wait volume copy
            volume create --size 1 --property use=test empty
            wait volume empty
            volume set --name grown --size 2 empty
            wait volume grown
            volume show grown
            volume list --status available
            volume snapshot list --name second
            limits show --absolute
            volume snapshot create --volume DATA second
            volume snapshot show nothing-like-it
            volume delete copy grown
            gone volume copy
            volume snapshot delete second
            gone snapshot second
            volume snapshot list
            token issue -f json
            catalog list
        """
        words = {"DATA": "data 1", "NOTE": "before the upgrade"}
        lines = [[words.get(word, word) for word in line.split()] for line in commands.strip().splitlines()]
        results = run_clients(tmp_path, clouds, lines)
        by_command = dict(zip((line.strip() for line in commands.strip().splitlines()), results, strict=True))
        failed = {
            command: result for command, result in by_command.items() if isinstance(result, dict) and "error" in result
        }
        assert failed.keys() == {
            "volume snapshot create --volume DATA second",
            "volume snapshot show nothing-like-it",
        }, failed
        listed, taken, waited, snapshots, _set, shown, _unset, unset = results[:8]
        assert [row["Name"] for row in listed] == ["data 1"]
        assert (taken["name"], taken["status"], waited) == ("first-snapshot", "creating", "available")
        assert [(row["Name"], row["Status"], row["Size"]) for row in snapshots] == [("first-snapshot", "available", 1)]
        assert (shown["name"], shown["description"], shown["properties"]["job"]) == ("second", words["NOTE"], "nightly")
        assert float(shown["properties"]["1cng:hourly_price"]) > 0
        assert "job" not in unset["properties"]
        grown = by_command["volume show grown"]
        assert (grown["size"], grown["status"], grown["properties"]["use"]) == (2, "available", "test")
        assert {row["Name"] for row in by_command["volume list --status available"]} == {"data 1", "copy", "grown"}
        limits = {row["Name"]: row["Value"] for row in by_command["limits show --absolute"]}
        assert (limits["total_volumes_used"], limits["total_snapshots_used"]) == (3, 1)
        assert results[-3] == []
        assert Snapshot.objects.get(pk=taken["id"]).state == State.DELETED
        assert not Operation.objects.exclude(state=Operation.State.SUCCEEDED).exists()
