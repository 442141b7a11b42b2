"""Migrations that run while the previous version still serves: see docs/operations.md, “Writing migrations”.

`make upgrade` tests it with processes of an old version; here every migration is analysed.
"""

from collections.abc import Iterator

import pytest
from django.apps import apps
from django.contrib.postgres.constraints import ExclusionConstraint
from django.db import connection, migrations, models
from django.db.migrations.loader import MigrationLoader
from django.db.migrations.operations.base import Operation
from django.db.migrations.state import ProjectState

from cng_portal.common.migrations import AddCheckMeanwhile, AddIndexMeanwhile, ValidateMeanwhile

# The migrations of the first release: no earlier version serves while they run.
FIRST_RELEASE = {
    "accounts": "0001_initial",
    "activity": "0002_triggers",
    "billing": "0002_triggers",
    "inventory": "0001_initial",
    "mail": "0001_initial",
    "monitoring": "0001_initial",
    "notifications": "0001_initial",
    "snapshots": "0003_search",
}
# {(app, migration): why it is harmless}. For a dropped column: the release that stopped using it.
ALLOWED: dict[tuple[str, str], str] = {
    ("billing", "0003_block_storage"): "triggers that SQLite dropped, one of a new kind; checks that allow more",
    ("inventory", "0002_volume_life"): "the old version writes neither these times nor the state “deleting”",
    ("snapshots", "0004_volume_operations"): "the rule allows all that the one before it did",
    (
        "snapshots",
        "0006_schedule_sources",
    ): "triggers and checks that allow what the old version writes; a unique index of volumes, which no run has yet",
    ("accounts", "0003_recycle_bin"): "the old version doesn't write the column",
    ("accounts", "0006_credential_guards"): "triggers on changes that no version makes",
    (
        "snapshots",
        "0014_recycle_bin",
    ): "triggers that let alone what isn't in the recycle bin, which the old version has not",
    ("snapshots", "0016_locks"): "triggers that let alone what isn't locked, and the old version locks nothing",
    ("inventory", "0007_recycle_bin"): "a trigger that lets alone what isn't in the recycle bin",
    ("snapshots", "0017_volumes_in_bin"): "a trigger that lets alone what isn't in the recycle bin",
    ("snapshots", "0018_unusual_changes"): "a trigger on what is held, which the old version never does",
    (
        "snapshots",
        "0021_restore_drills",
    ): "tables that the old version doesn't know, new and empty; a check that allows more; triggers that SQLite dropped",
    ("snapshots", "0023_drill_plans"): "tables that the old version doesn't know, new and empty",
    ("snapshots", "0009_snapshot_size"): "a trigger that refuses only what fails when its usage starts",
    ("snapshots", "0012_catalogues"): "a check that allows more; a unique index of a kind that no operation has yet",
}
OURS = [
    app.label for app in apps.get_app_configs() if app.name.partition(".")[0] in ("cng_portal", "billing", "snapshots")
]


def complaints(operation: Operation, app: str, before: ProjectState) -> Iterator[str]:
    """Yield why the operation breaks or blocks the version that knows only `before`."""
    match operation:
        case migrations.SeparateDatabaseAndState():
            for inner in operation.database_operations:
                yield from complaints(inner, app, before)
        case migrations.RemoveField() | migrations.DeleteModel():
            yield "takes away what the old version asks for: take it out of the model's state first, drop it a release later"
        case migrations.RenameField() | migrations.RenameModel() | migrations.AlterModelTable():
            yield "renames what the old version asks for: add the new one, write both, drop the old one a release later"
        case migrations.AddField(field=field):
            yield from of_new_column(field)
        case migrations.AlterField(model_name=model, name=name, field=field):
            yield from of_changed_column(before.models[app, model.lower()].fields[name], field)
        case AddIndexMeanwhile() | ValidateMeanwhile():
            return
        case AddCheckMeanwhile():
            yield "the old version may break the rule: somebody has to look at it"
        case migrations.AddIndex() | migrations.AddConstraint() | migrations.AlterUniqueTogether():
            model = operation.model_name if hasattr(operation, "model_name") else operation.name
            if (app, model.lower()) in before.models:
                yield from of_new_rule(operation)
        case migrations.RunSQL() | migrations.RunPython():
            yield "runs what no check understands: somebody has to look at it"
        case (
            migrations.CreateModel()
            | migrations.AlterModelOptions()
            | migrations.AlterModelManagers()
            | migrations.RemoveIndex()
            | migrations.RemoveConstraint()
            | migrations.AlterConstraint()
            | migrations.AlterModelTableComment()
        ):
            return
        case _:
            yield f"is of a kind that is not judged here yet: {type(operation).__name__}"


def of_new_column(field: models.Field) -> Iterator[str]:
    if field.many_to_many or field.generated:
        return
    if not field.null and not field.has_db_default():
        yield "the old version's inserts leave it out: give it db_default, or null=True"
    if field.has_db_default() and not isinstance(field.db_default, models.Value | str | int | bool | float | tuple):
        yield "a default that is computed for each row rewrites the table"
    if field.unique or field.db_index:
        yield "builds an index while nobody can write: add it concurrently, in a migration of its own"


def of_changed_column(old: models.Field, new: models.Field) -> Iterator[str]:
    if old.null and not new.null:
        yield "the old version may still write NULL: fill it and add the rule a release later"
    if new.unique and not old.unique:
        yield "the old version may still write it twice, and nobody can write while the index is built"
    shorter = (new.max_length or 0) < (old.max_length or 0)
    if shorter or old.get_internal_type() != new.get_internal_type():
        yield "changes the column's type: the table is rewritten under a lock, or old values do not fit"


def of_new_rule(operation: Operation) -> Iterator[str]:
    constraint = getattr(operation, "constraint", None)
    if isinstance(constraint, models.CheckConstraint):
        yield "reads the whole table under a lock, and the old version may break the rule: add it NOT VALID, validate later"
    elif isinstance(constraint, models.UniqueConstraint | ExclusionConstraint):
        yield "builds an index while nobody can write, and the old version may break the rule"
    else:
        yield "builds an index while nobody can write: add it concurrently, in a migration of its own"


def judged() -> Iterator[tuple[tuple[str, str], list[str]]]:
    """Yield every migration after the first release, with the objections to it."""
    loader = MigrationLoader(connection)
    for app in OURS:
        for key in loader.graph.forwards_plan(loader.graph.leaf_nodes(app)[0]) if loader.graph.leaf_nodes(app) else []:
            if key[0] != app or key[1][:4] <= FIRST_RELEASE.get(app, "")[:4]:
                continue
            migration = loader.get_migration(*key)
            state = loader.project_state([node for node in migration.dependencies if node[1] != "__first__"])
            against = []
            for operation in migration.operations:
                before = state.clone()
                operation.state_forwards(app, state)
                against += [f"{operation.describe()}: {why}" for why in complaints(operation, app, before)]
            yield key, against


@pytest.mark.django_db
def test_every_migration_leaves_the_version_before_it_working() -> None:
    problems = {key: against for key, against in judged() if against}
    unexplained = {key: against for key, against in problems.items() if key not in ALLOWED}
    assert not unexplained, (
        "See docs/operations.md, “Writing migrations”; what harms nobody is named in ALLOWED, with the reason"
    )
    assert ALLOWED.keys() <= problems.keys(), "take what is no exception out of ALLOWED"


def state_with(**fields: models.Field) -> ProjectState:
    state = ProjectState()
    migrations.CreateModel("Thing", [("id", models.BigAutoField(primary_key=True)), *fields.items()]).state_forwards(
        "app", state
    )
    return state


TEXT = models.CharField(max_length=20)
CHECK = models.CheckConstraint(condition=models.Q(pk__gt=0), name="positive")


@pytest.mark.parametrize(
    ("operation", "why"),
    [
        (migrations.RemoveField("thing", "name"), "takes away"),
        (migrations.DeleteModel("Thing"), "takes away"),
        (migrations.RenameField("thing", "name", "title"), "renames"),
        (migrations.RenameModel("Thing", "Other"), "renames"),
        (migrations.AddField("thing", "colour", models.CharField(max_length=20, default="red")), "db_default"),
        (migrations.AddField("thing", "colour", models.CharField(max_length=20, db_default="red")), ""),
        (migrations.AddField("thing", "colour", models.CharField(max_length=20, null=True)), ""),
        (migrations.AddField("thing", "key", models.CharField(max_length=20, null=True, unique=True)), "index"),
        (migrations.AlterField("thing", "name", models.CharField(max_length=10)), "type"),
        (migrations.AlterField("thing", "name", models.TextField()), "type"),
        (migrations.AlterField("thing", "name", models.CharField(max_length=30, verbose_name="title")), ""),
        (migrations.AlterField("thing", "name", models.CharField(max_length=20, unique=True)), "twice"),
        (migrations.AlterField("thing", "maybe", models.IntegerField()), "NULL"),
        (migrations.AddIndex("thing", models.Index(fields=["name"], name="by_name")), "index"),
        (AddIndexMeanwhile("thing", models.Index(fields=["name"], name="by_name")), ""),
        (migrations.AddConstraint("thing", CHECK), "NOT VALID"),
        (AddCheckMeanwhile("thing", CHECK), "look at it"),
        (migrations.RunSQL("SELECT 1"), "look at it"),
        (migrations.SeparateDatabaseAndState(state_operations=[migrations.RemoveField("thing", "name")]), ""),
        (migrations.SeparateDatabaseAndState([migrations.RemoveField("thing", "name")]), "takes away"),
        (migrations.CreateModel("Other", [("id", models.BigAutoField(primary_key=True))]), ""),
    ],
    ids=lambda value: getattr(value, "migration_name_fragment", None) or str(value)[:20],
)
def test_incompatible_migrations_are_reported(operation: Operation, why: str) -> None:
    before = state_with(name=TEXT, maybe=models.IntegerField(null=True))
    problems = list(complaints(operation, "app", before))
    assert (why in " ".join(problems)) if why else not problems
