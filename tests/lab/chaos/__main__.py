"""`make chaos`: customers click while processes are killed; afterwards nothing may be lost, orphaned or overcharged.

Runs for CHAOS_SECONDS (120) on SQLite, and on PostgreSQL if a server is installed. Over HTTP, eight customers use
everything that concerns snapshots, backups, bills and members, their invited colleagues join, and two administrators
switch automatic backups and change prices (actors.py). The customers' machines write to their disks (disks.py). Web
server, workers, schedulers and PostgreSQL are killed, frozen and restarted at random, the storage fills up (as root, on
a small file system of its own), and the clock of the portal's processes jumps by hours (portal.py). A request that
hangs, or fails with a 5xx while nothing is down, fails the run. Finally everything runs undisturbed until no work is
left, and the result is compared with the actions (afterwards.py).

CHAOS_SEED repeats the order of the disturbances, though not their exact timing.
"""

import os
import random
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.postgres import dump, find_server_programs, postgres

STORAGE_MIB = 96


def main() -> int:
    results = []
    for database in sys.argv[1:] or ["sqlite", "postgresql"]:
        programs = find_server_programs()
        if database == "sqlite":
            results.append(run(database, ""))
        elif programs:
            with postgres(programs) as url:
                results.append(run(database, url, programs))
        else:
            print("Chaos on PostgreSQL was left out, because there is no server.", flush=True)
    return max(results, default=0)


def run(database: str, url: str, programs: Path | None = None) -> int:
    seed = os.environ.get("CHAOS_SEED") or str(random.randrange(10**6))
    print(f"{database}, CHAOS_SEED={seed}:", flush=True)
    folder = Path(tempfile.mkdtemp(prefix="portal-chaos-"))
    storage = folder / "storage"
    storage.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={STORAGE_MIB}m", "tmpfs", str(storage)]
    mounted = os.geteuid() == 0 and subprocess.run(mount, capture_output=True).returncode == 0
    environment = os.environ | {
        "DATA_DIR": str(folder),
        "DATABASE_URL": url,
        "DJANGO_SETTINGS_MODULE": "cng_portal.settings",
        "ENV_FILE": os.devnull,
        "LOG_LEVEL": "WARNING",
        "OPERATION_LEASE_SECONDS": "4",
        "SCHEDULER_LEASE_SECONDS": "5",
        "SNAPSHOTS_PER_HOUR": "0",
        "RESTORES_PER_HOUR": "0",
        "NEW_VOLUMES_PER_HOUR": "0",
        "VERIFICATIONS_PER_HOUR": "0",
        "VOLUME_EXTENSIONS_PER_HOUR": "0",
        "DRILLS_PER_HOUR": "0",
        "RECYCLE_BIN_FREE_GB": "0",  # else the small storage empties the bin early
        "EMAIL_URL": f"filemail:///{folder}/mails",
        "CHAOS_SEED": seed,
        "CHAOS_SMALL_STORAGE": str(int(mounted)),
        "CHAOS_POSTGRESQL": str(programs or ""),
    }
    failed = True
    try:
        failed = bool(subprocess.call([sys.executable, "-m", "tests.lab.chaos.storm"], env=environment))
    finally:
        if storage.is_mount():
            subprocess.run(["umount", "--lazy", str(storage)], check=True)
        if failed and programs:
            dump(programs, url, folder / "database.sql")
        if failed:
            print(f"  Database and logs are in {folder}.", flush=True)
        else:
            shutil.rmtree(folder, ignore_errors=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
