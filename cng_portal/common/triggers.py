"""Triggers for rules that constraints can't express: rows that are never changed, prices that don't reach into the past.

SQLite drops the triggers of a table that Django rebuilds to alter it. A migration that alters a guarded table has to run
`drop_guards` before and `create_guards` after it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from django.db.migrations import RunPython

# SQL for the placeholders of a condition, by the database's vendor.
WORDS = {
    "sqlite": {
        "always": "1",
        "differs": "IS NOT",
        "now": "strftime('%Y-%m-%d %H:%M:%f', 'now')",
        "year_ago": "strftime('%Y-%m-%d %H:%M:%f', 'now', '-365 days')",
    },
    "postgresql": {
        "always": "TRUE",
        "differs": "IS DISTINCT FROM",
        "now": "clock_timestamp()",
        "year_ago": "clock_timestamp() - interval '8760 hours'",  # days differ in length where clocks change
    },
}


@dataclass(frozen=True)
class Guard:
    """Abort the statement with `message`, as an IntegrityError, where `condition` holds for a row.

    `when` is such as "BEFORE UPDATE OR DELETE". The condition is SQL over NEW and OLD, in which `{now}`, `{year_ago}`,
    `{always}` and `{differs}` (distinct, NULLs included) stand for the database's own SQL.
    """

    name: str
    when: str
    table: str
    condition: str
    message: str


def guards(app: str, rules: Sequence[Guard]) -> RunPython:
    """Return the operation of a migration that creates the triggers `<app>_guard_<name>`."""
    return RunPython(partial(create_guards, app, rules), partial(drop_guards, app, rules))


def create_guards(app: str, rules: Sequence[Guard], _apps: Any, schema_editor: Any) -> None:
    vendor = schema_editor.connection.vendor
    create: Callable[[str, Guard, str], list[str]] = _sqlite_triggers if vendor == "sqlite" else _postgresql_triggers
    for rule in rules:
        for statement in create(f"{app}_guard_{rule.name}", rule, rule.condition.format(**WORDS[vendor])):
            schema_editor.execute(statement, params=None)


def drop_guards(app: str, rules: Sequence[Guard], _apps: Any, schema_editor: Any) -> None:
    for rule in rules:
        name = f"{app}_guard_{rule.name}"
        if schema_editor.connection.vendor == "sqlite":
            for event in _events(rule):
                schema_editor.execute(f"DROP TRIGGER IF EXISTS {name}_{event.lower()}", params=None)
        else:
            schema_editor.execute(f"DROP FUNCTION IF EXISTS {name}() CASCADE", params=None)


def _events(rule: Guard) -> list[str]:
    return rule.when.replace(" OR", "").split()[1:]


def _sqlite_triggers(name: str, rule: Guard, condition: str) -> list[str]:
    timing = rule.when.split()[0]
    return [
        f"CREATE TRIGGER {name}_{event.lower()} {timing} {event} ON {rule.table} FOR EACH ROW"
        f" WHEN {condition} BEGIN SELECT RAISE(ABORT, '{rule.message}'); END"
        for event in _events(rule)
    ]


def _postgresql_triggers(name: str, rule: Guard, condition: str) -> list[str]:
    return [
        f"CREATE FUNCTION {name}() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        f" IF {condition} THEN RAISE EXCEPTION '{rule.message}' USING ERRCODE = 'integrity_constraint_violation'; END IF;"
        " IF TG_OP = 'DELETE' THEN RETURN OLD; END IF; RETURN NEW; END $$",
        f"CREATE TRIGGER {name} {rule.when} ON {rule.table} FOR EACH ROW EXECUTE FUNCTION {name}()",
    ]
