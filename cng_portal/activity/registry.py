"""The actions that the activity log can record. Each app registers its own in its module `activity`."""

from django.utils.functional import Promise

ACTIONS: dict[str, str | Promise] = {}


def register(actions: dict[str, str | Promise]) -> None:
    """Add actions: {the name that is stored: the label that users read}."""
    ACTIONS.update(actions)


def get_label(action: str) -> str | Promise:
    return ACTIONS.get(action, action)
