"""Passwords that are known from breaches of other sites are refused, where the operator has a list of them."""

import os
from hashlib import sha1
from pathlib import Path

from django.core.exceptions import ValidationError
from django.utils.translation import gettext as _

from .models import User


class BreachedPasswordValidator:
    """`path` is a file of SHA-1 sums in capital letters, sorted, one at the beginning of each line: what the downloader of
    Have I Been Pwned writes (https://github.com/HaveIBeenPwned/PwnedPasswordsDownloader). It is searched by halves, some
    forty short reads whatever its size, and no password leaves the machine.
    """

    def __init__(self, path: str) -> None:
        self.path = Path(path)

    def validate(self, password: str, user: User | None = None) -> None:
        if is_listed(self.path, sha1(password.encode(), usedforsecurity=False).hexdigest().upper().encode()):
            raise ValidationError(
                _("This password is in a list of those that were stolen elsewhere. Choose another one."),
                code="password_breached",
            )

    def get_help_text(self) -> str:
        return _("Your password must not be known from a breach of another site.")


def is_listed(path: Path, digest: bytes) -> bool:
    with open(path, "rb") as file:

        def first_from(place: int) -> bytes:
            """The sum on the first line that begins at the place or after it; nothing after the last."""
            file.seek(max(0, place - 1))
            if place:
                file.readline()
            return file.readline()[: len(digest)]

        low, high = 0, file.seek(0, os.SEEK_END)
        while low < high:
            middle = (low + high) // 2
            found = first_from(middle)
            if found and found < digest:
                low = middle + 1
            else:
                high = middle
        return first_from(low) == digest
