"""A temporary PostgreSQL server in a folder of its own."""

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

USER, DATABASE = "portal", "postgres"


def find_server_programs() -> Path | None:
    """Return the folder of initdb and postgres in the newest version; Debian keeps them out of PATH."""
    on_path = shutil.which("initdb")
    if on_path:
        return Path(on_path).resolve().parent
    debian = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    return debian[-1].parent if debian else None


@contextmanager
def postgres(programs: Path) -> Iterator[str]:
    """Start a server that listens only on a socket in its own folder. Yields its DATABASE_URL."""
    folder = Path(tempfile.mkdtemp(prefix="portal-postgres-"))
    if os.geteuid() == 0:  # PostgreSQL refuses to run as root
        names = {entry.pw_name for entry in pwd.getpwall()}
        owner = pwd.getpwnam("postgres" if "postgres" in names else "nobody")
        os.chown(folder, owner.pw_uid, owner.pw_gid)
    data = folder / "data"
    initdb = [programs / "initdb", f"--username={USER}", "--auth=trust", "--encoding=UTF8", "--locale=C", "--no-sync"]
    try:
        subprocess.run([*initdb, "--pgdata", data], check=True, stdout=subprocess.DEVNULL, **process_options(folder))
        start(programs, folder)
        try:
            yield f"postgres://{USER}@/{folder}/{DATABASE}"
        finally:
            control(programs, folder, "--mode=immediate", "stop", check=False)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def dump(programs: Path, url: str, file: Path) -> None:
    """Write the server's database to `file` as SQL, or copy the server's files beside it if that fails.

    The server is restarted first, because it may be stopped, replaying its log, or out of connections.
    """
    folder = Path(url.partition("@/")[2]).parent
    control(programs, folder, "--mode=immediate", "stop", check=False)
    # Not by URL: libpq takes the path for the database's name, and uses the default socket.
    where = [f"--host={folder}", f"--username={USER}", f"--dbname={DATABASE}"]
    try:
        start(programs, folder)
        subprocess.run([programs / "pg_dump", *where, f"--file={file}"], check=True)
    except subprocess.CalledProcessError as error:
        print(f"  {error} The server's files are copied instead.", flush=True)
        shutil.copytree(folder / "data", file.with_suffix(""))


def start(programs: Path, folder: Path) -> None:
    # Durability doesn't matter here; many tests connect from twenty threads, and one reads plans, which statistics change.
    options = ["-k", str(folder), "-c", "listen_addresses=", "-c", "fsync=off", "-c", "full_page_writes=off"]
    options += ["-c", "max_connections=300", "-c", "autovacuum=off"]
    quoted = " ".join(f"'{option}'" for option in options)
    control(programs, folder, "--log", str(folder / "log"), "--options", quoted, "start", check=True)


def control(programs: Path, folder: Path, *words: str, check: bool) -> subprocess.CompletedProcess:
    command = [programs / "pg_ctl", "--pgdata", folder / "data", "--wait", "--silent", *words]
    return subprocess.run(command, check=check, stdout=subprocess.DEVNULL, **process_options(folder))


def process_options(folder: Path) -> dict[str, Any]:
    """Return the options to run a program as the owner of the server's folder, who isn't root."""
    options: dict[str, Any] = {"cwd": folder, "stdin": subprocess.DEVNULL}
    if os.geteuid() == 0:
        owner = folder.stat()
        options |= {"user": owner.st_uid, "group": owner.st_gid, "extra_groups": []}
    return options
