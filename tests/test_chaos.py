"""What a failed run of `make chaos` leaves behind to look at."""

from pathlib import Path

import pytest

from tests.postgres import control, dump, find_server_programs, postgres

PROGRAMS = find_server_programs()


@pytest.mark.skipif(PROGRAMS is None, reason="There is no PostgreSQL server.")
@pytest.mark.parametrize("is_stopped", [False, True])
def test_the_database_of_a_failed_run_is_kept(tmp_path: Path, is_stopped: bool) -> None:
    assert PROGRAMS is not None
    with postgres(PROGRAMS) as url:
        if is_stopped:
            folder = Path(url.partition("@/")[2]).parent
            control(PROGRAMS, folder, "--mode=immediate", "stop", check=True)
        dump(PROGRAMS, url, tmp_path / "database.sql")
    assert "PostgreSQL database dump complete" in (tmp_path / "database.sql").read_text()
