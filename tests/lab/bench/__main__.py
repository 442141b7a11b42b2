"""`make bench`: run every bench_*.py in its own process and print one table. Exits with 1 if a goal was missed."""

import importlib
import os
import pickle
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.lab.bench import Measure


def main() -> int:
    wanted = sys.argv[1:] or sorted(path.stem for path in Path(__file__).parent.glob("bench_*.py"))
    measures: list[Measure] = []
    broken: list[str] = []
    for name in wanted:
        print(f"{name} …", flush=True)
        with tempfile.TemporaryDirectory(prefix="portal-bench-") as folder:
            environment = os.environ | {
                "DATA_DIR": folder,
                "DJANGO_SETTINGS_MODULE": "cng_portal.settings",
                "ENV_FILE": os.devnull,
                "LOG_LEVEL": "ERROR",
            }
            result = Path(folder, "measures")
            command = [sys.executable, "-m", "tests.lab.bench.__main__", "--run", name, str(result)]
            if subprocess.call(command, env=environment) or not result.exists():
                broken.append(name)
            else:
                measures += pickle.loads(result.read_bytes())
    show(measures)
    goals = [measure for measure in measures if measure.goal]
    missed = [measure for measure in goals if not measure.reached]
    for name in broken:
        print(f"{name} stopped with an error, see above.")
    print(f"{len(goals) - len(missed)} of {len(goals)} goals reached.")
    return 1 if missed or broken else 0


def show(measures: list[Measure]) -> None:
    rows = [("what", "measured", "goal", "", "")]
    for m in measures:
        verdict = ("reached" if m.reached else "MISSED") if m.goal else ""
        rows.append((m.what, f"{m.value:.2f}{m.unit}", m.goal, verdict, m.note))
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def run(name: str, result: Path) -> None:
    import django
    from django.core.management import call_command

    django.setup()
    call_command("migrate", verbosity=0)
    call_command("createcachetable", verbosity=0)
    result.write_bytes(pickle.dumps(list(importlib.import_module(f"tests.lab.bench.{name}").main())))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--run"]:
        run(sys.argv[2], Path(sys.argv[3]))
    else:
        sys.exit(main())
