from typing import Any

from django.core.management.commands import flush
from django.db import connections

from billing import guards


class Command(flush.Command):
    """Django's own command, with the triggers lifted that keep rows of billing from being deleted."""

    def handle(self, **options: Any) -> None:
        with guards.lifted(connections[options["database"]]):
            super().handle(**options)
