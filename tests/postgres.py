"""A PostgreSQL server of its own in a temporary folder, for as long as it is needed."""

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def find_server_programs() -> Path | None:
    """The folder that holds initdb and postgres; Debian keeps them out of PATH. The newest version wins."""
    on_path = shutil.which("initdb")
    if on_path:
        return Path(on_path).resolve().parent
    debian = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    return debian[-1].parent if debian else None


@contextmanager
def postgres(programs: Path) -> Iterator[str]:
    """Start a server that listens on a socket in its own folder only; the value is its DATABASE_URL."""
    folder = Path(tempfile.mkdtemp(prefix="portal-postgres-"))
    options: dict = {"cwd": folder, "stdin": subprocess.DEVNULL}
    if os.geteuid() == 0:  # PostgreSQL refuses to run as root
        names = {entry.pw_name for entry in pwd.getpwall()}
        owner = pwd.getpwnam("postgres" if "postgres" in names else "nobody")
        os.chown(folder, owner.pw_uid, owner.pw_gid)
        options |= {"user": owner.pw_uid, "group": owner.pw_gid, "extra_groups": []}
    data = folder / "data"
    initdb = [programs / "initdb", "--username=portal", "--auth=trust", "--encoding=UTF8", "--locale=C", "--no-sync"]
    # What a crash of the machine would lose is of no interest here; many tests connect from twenty threads.
    server = ["-k", str(folder), "-c", "listen_addresses=", "-c", "fsync=off", "-c", "max_connections=300"]
    control = [programs / "pg_ctl", "--pgdata", data, "--wait", "--silent"]
    try:
        subprocess.run([*initdb, "--pgdata", data], check=True, stdout=subprocess.DEVNULL, **options)
        subprocess.run(
            [*control, "--log", folder / "log", "--options", " ".join(f"'{word}'" for word in server), "start"],
            check=True,
            **options,
        )
        try:
            yield f"postgres://portal@/{folder}/postgres"
        finally:
            subprocess.run([*control, "--mode=immediate", "stop"], check=True, **options)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
