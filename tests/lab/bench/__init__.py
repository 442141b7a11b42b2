"""What must stay fast, measured as ratios within one run so that the machine does not matter. `make bench` runs it.

A module `bench_<subject>.py` in this folder has a function `main()` that returns its measures. It runs in a process of
its own: Django is set up, DATA_DIR is a new folder with a migrated SQLite database, the cwd is the project's folder.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Measure:
    """One number that has to be `at_least` or `at_most` something; with neither it is only shown."""

    what: str
    value: float
    unit: str = ""  # such as "×" for a ratio or "MiB"
    at_least: float | None = None
    at_most: float | None = None
    note: str = ""  # the figures that it was made from, or why it could not be measured

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
