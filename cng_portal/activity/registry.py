"""The actions that the activity log can record. Each app registers its own in its module `activity`."""

from django.utils.functional import Promise

ACTIONS: dict[str, str | Promise] = {}
# Their details name files, so they are for those who may read files in the project.
ABOUT_FILES: set[str] = set()


def register(actions: dict[str, str | Promise], *, about_files: bool = False) -> None:
    """Add actions: {the name that is stored: the label that users read}."""
    ACTIONS.update(actions)
    if about_files:
        ABOUT_FILES.update(actions)


def get_label(action: str) -> str | Promise:
    return ACTIONS.get(action, action)
