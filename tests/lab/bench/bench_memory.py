"""A web process needs no more memory after 10,000 pages of 200 customers than after 1,000."""

from collections.abc import Iterator

from tests.lab.bench import Measure
from tests.lab.bench.bench_load import Portal
from tests.postgres import find_server_programs, postgres

SNAPSHOTS = 10_000
EARLY, LATE = 1_000, 10_000


def main() -> Iterator[Measure]:
    programs = find_server_programs()
    if programs is None:
        yield Measure("memory", 0, note="not measured: there is no PostgreSQL server on this machine")
        return
    with postgres(programs) as url, Portal(url, SNAPSHOTS) as portal:
        portal.ask("fill")
        early, late = portal.ask("memory", [EARLY, LATE])["peaks"]
    what = f"peak memory of a web process: {LATE:,} pages against {EARLY:,}"
    yield Measure(what, late / early, "×", at_most=1.1, note=f"{late:.0f} MiB against {early:.0f} MiB")
