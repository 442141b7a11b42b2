"""What a failed run of `make chaos` leaves behind to look at."""

from pathlib import Path

import pytest

from tests.postgres import control, dump, find_server_programs, postgres

PROGRAMS = find_server_programs()
pytestmark = [pytest.mark.slow, pytest.mark.skipif(PROGRAMS is None, reason="There is no PostgreSQL server.")]


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


def test_the_files_of_a_database_that_cannot_be_dumped_are_kept(tmp_path: Path) -> None:
    assert PROGRAMS is not None
    with postgres(PROGRAMS) as url:
        (Path(url.partition("@/")[2]).parent / "data" / "global" / "pg_control").unlink()
        dump(PROGRAMS, url, tmp_path / "database.sql")
    assert (tmp_path / "database" / "PG_VERSION").exists()
