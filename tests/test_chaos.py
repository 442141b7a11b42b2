"""What `make chaos` finds, and what a failed run keeps for analysis."""

import importlib
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from snapshots.models import BackupSchedule, DeletionCause, State
from tests.factories import BackupFactory, BackupRunFactory, BackupScheduleFactory
from tests.postgres import control, dump, find_server_programs, postgres

PROGRAMS = find_server_programs()
needs_server = pytest.mark.skipif(PROGRAMS is None, reason="There is no PostgreSQL server.")
AT = datetime(2026, 3, 1, 2, tzinfo=UTC)


@pytest.fixture
def afterwards(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    for name, value in {
        "DATA_DIR": str(tmp_path),
        "CHAOS_SMALL_STORAGE": "0",
        "CHAOS_POSTGRESQL": "",
        "CHAOS_SEED": "1",
    }.items():
        monkeypatch.setenv(name, value)
    return importlib.import_module("tests.lab.chaos.afterwards")


def done_runs(*deleted: tuple[DeletionCause | None, int | None]) -> BackupSchedule:
    """Create a schedule with one done run a day, given (cause of its backup's deletion, day) of each."""
    schedule = BackupScheduleFactory()
    for day, (cause, deleted_on) in enumerate(deleted):
        at = AT + timedelta(days=day)
        gone = {}
        if cause and deleted_on is not None:
            gone = {
                "state": State.DELETED,
                "deletion_cause": cause,
                "delete_requested_at": AT + timedelta(days=deleted_on),
                "deleted_at": AT + timedelta(days=deleted_on),
            }
        backup = BackupFactory(vm=schedule.vm, ready_at=at, **gone)
        BackupRunFactory(schedule=schedule, snapshot=backup, number=day + 1, scheduled_at=at, finished_at=at)
    return schedule


THERE = (None, None)


@pytest.mark.django_db
@pytest.mark.parametrize(
    "runs",
    [
        [(DeletionCause.RETENTION, 1), THERE],
        [(DeletionCause.RETENTION, 1), (DeletionCause.USER, 9)],
        [(DeletionCause.RETENTION, 2), (DeletionCause.USER, 9), (DeletionCause.USER, 1)],
        [(DeletionCause.RETENTION, 1), (DeletionCause.OUTSIDE, 9)],
    ],
)
def test_deletions_by_users_do_not_count_as_lost_backups(afterwards: Any, runs: list) -> None:
    done_runs(*runs)
    assert list(afterwards.newest_backups_exist()) == []


@pytest.mark.django_db
@pytest.mark.parametrize(
    "runs, sentence",
    [
        ([THERE, (DeletionCause.RETENTION, 1)], "has lost its newest backup: run 2"),
        ([THERE, (DeletionCause.DAMAGED, 9)], "has lost its newest backup: run 2"),
        ([(DeletionCause.RETENTION, 0), (DeletionCause.USER, 9)], "without a newer one that was done then"),
        ([THERE, (DeletionCause.RETENTION, 0), (DeletionCause.USER, 9)], "has deleted run 2"),
    ],
)
def test_a_newest_backup_that_the_portal_deleted_is_found(afterwards: Any, runs: list, sentence: str) -> None:
    done_runs(*runs)
    assert [sentence in message for message in afterwards.newest_backups_exist()] == [True]


def test_only_files_that_the_portal_did_not_write_are_untidy(
    afterwards: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(afterwards.portal, "STORAGE", tmp_path)
    snapshot = f"1CNG-YGN-AZ01/snapshots/{uuid4()}"
    for name in ("disk.img", "manifest.json", "catalogue", ".catalogue.new"):
        (tmp_path / snapshot).mkdir(parents=True, exist_ok=True)
        (tmp_path / snapshot / name).touch()
    assert list(afterwards.storage_is_tidy()) == [f"{snapshot}/.catalogue.new"]


@pytest.mark.slow
@needs_server
@pytest.mark.parametrize("server", ["running", "stopped", "killed"])
def test_the_database_of_a_failed_run_is_kept(tmp_path: Path, server: str) -> None:
    assert PROGRAMS is not None
    with postgres(PROGRAMS) as url:
        folder = Path(url.partition("@/")[2]).parent
        if server == "stopped":
            control(PROGRAMS, folder, "--mode=immediate", "stop", check=True)
        elif server == "killed":
            pid = (folder / "data" / "postmaster.pid").read_text().split()[0]
            control(PROGRAMS, folder, "kill", "KILL", pid, check=True)
        dump(PROGRAMS, url, tmp_path / "database.sql")
    assert "PostgreSQL database dump complete" in (tmp_path / "database.sql").read_text()


@pytest.mark.slow
@needs_server
def test_the_files_of_a_database_that_cannot_be_dumped_are_kept(tmp_path: Path) -> None:
    assert PROGRAMS is not None
    with postgres(PROGRAMS) as url:
        (Path(url.partition("@/")[2]).parent / "data" / "global" / "pg_control").unlink()
        dump(PROGRAMS, url, tmp_path / "database.sql")
    assert (tmp_path / "database" / "PG_VERSION").exists()
