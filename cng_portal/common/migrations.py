"""Operations for migrations that run while the previous version serves: see docs/operations.md."""

from typing import Any

from django.contrib.postgres.operations import AddConstraintNotValid, AddIndexConcurrently, ValidateConstraint


class AddIndexMeanwhile(AddIndexConcurrently):
    """Add an index without blocking writes on PostgreSQL. The migration must have `atomic = False`."""

    def database_forwards(self, app_label: str, schema_editor: Any, from_state: Any, to_state: Any) -> None:
        on_postgresql = schema_editor.connection.vendor == "postgresql"
        forwards = super().database_forwards if on_postgresql else super(AddIndexConcurrently, self).database_forwards
        forwards(app_label, schema_editor, from_state, to_state)

    def database_backwards(self, app_label: str, schema_editor: Any, from_state: Any, to_state: Any) -> None:
        on_postgresql = schema_editor.connection.vendor == "postgresql"
        backwards = (
            super().database_backwards if on_postgresql else super(AddIndexConcurrently, self).database_backwards
        )
        backwards(app_label, schema_editor, from_state, to_state)


class AddCheckMeanwhile(AddConstraintNotValid):
    """Add a check without reading the table on PostgreSQL. `ValidateMeanwhile` follows in a later migration.

    The previous version's inserts have to satisfy it.
    """

    def database_forwards(self, app_label: str, schema_editor: Any, from_state: Any, to_state: Any) -> None:
        on_postgresql = schema_editor.connection.vendor == "postgresql"
        forwards = super().database_forwards if on_postgresql else super(AddConstraintNotValid, self).database_forwards
        forwards(app_label, schema_editor, from_state, to_state)


class ValidateMeanwhile(ValidateConstraint):
    """Validate a check without blocking writes on PostgreSQL."""

    def database_forwards(self, app_label: str, schema_editor: Any, from_state: Any, to_state: Any) -> None:
        if schema_editor.connection.vendor == "postgresql":
            super().database_forwards(app_label, schema_editor, from_state, to_state)
