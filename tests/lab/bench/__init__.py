"""Benchmarks, as ratios within one run so that the machine doesn't matter. `make bench` runs them.

Each module `bench_<subject>.py` has a function `main()` that returns its measures. It runs in its own process, with Django
set up, the project as working directory, and a new DATA_DIR with a migrated SQLite database.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Measure:
    """A number and its goal, `at_least` or `at_most`. Without a goal, it is only displayed."""

    what: str
    value: float
    unit: str = ""  # such as "×" for a ratio or "MiB"
    at_least: float | None = None
    at_most: float | None = None
    note: str = ""  # the figures it was computed from, or why it couldn't be measured

    @property
    def reached(self) -> bool:
        return (self.at_least is None or self.value >= self.at_least) and (
            self.at_most is None or self.value <= self.at_most
        )

    @property
    def goal(self) -> str:
        if self.at_least is not None:
            return f"≥ {self.at_least:g}{self.unit}"
        return f"≤ {self.at_most:g}{self.unit}" if self.at_most is not None else ""
