"""What may be in a name that others read: nothing that cannot be seen, and nothing that makes the rest look like something
else, as marks of direction do (Unicode Technical Report 36).
"""

import unicodedata

from django.core.exceptions import ValidationError
from django.utils.translation import gettext as _

# control and format characters, lone surrogates, line and paragraph separators
UNSHOWABLE = {"Cc", "Cf", "Cs", "Zl", "Zp"}
# scripts need them between letters, where they are no letters of their own; Burmese has the first where a line may break
JOINERS = "\u200b\u200c\u200d"
# letters without a shape
FILLERS = "\u115f\u1160\u3164\uffa0"


def can_be_shown(name: str, besides: str = JOINERS) -> bool:
    return all(
        character in besides or (character not in FILLERS and unicodedata.category(character) not in UNSHOWABLE)
        for character in name
    ) and not (name and not name.strip(besides + " "))


def check(name: str, besides: str = JOINERS) -> str:
    """The name; an e-mail address has nothing `besides` what is seen. Raises ValidationError."""
    if not can_be_shown(name, besides):
        raise ValidationError(explain())
    return name


def explain() -> str:
    return _("The name has a character that cannot be shown, such as a line break. Remove it.")
