"""Passwords that are known from breaches of other sites are refused: a file of them says which, or a service."""

import logging
import os
import re
from concurrent.futures import Future
from hashlib import sha1
from http.client import HTTPException
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.request import HTTPRedirectHandler, Request, build_opener

from django.core.exceptions import ValidationError
from django.utils.translation import gettext as _
from prometheus_client import Counter

from ..models import User

logger = logging.getLogger(__name__)

SECONDS = 2
MOST_BYTES = 2**20  # an answer has some 40 KB
KNOWN = 5  # characters of a sum that the service is told
LINE = re.compile(r"([0-9A-F]{35}):(\d+)")
SILENCES = Counter(
    "portal_breach_service_failures",
    "Passwords that were accepted although the service of BREACHED_PASSWORDS gave no answer.",
    registry=None,
)


class BreachedPasswordValidator:
    """`source` is a file or the https address of a service.

    The file has SHA-1 sums in capital letters, sorted, one at the beginning of each line: what the downloader of Have I
    Been Pwned writes (https://github.com/HaveIBeenPwned/PwnedPasswordsDownloader). It is searched by halves, some forty
    short reads whatever its size, and nothing leaves the machine.

    The service answers as https://haveibeenpwned.com/API/v3#PwnedPasswords describes, and learns the first five
    characters of the sum, which a thousand known passwords share and any number of others. It has two seconds. When it
    does not answer, the password is accepted, a warning logged and the number `portal_breach_service_failures_total`
    raised: a portal in which nobody can set a password because somebody else's machine is down is worse.
    """

    def __init__(self, source: str) -> None:
        self.source = source

    def validate(self, password: str, user: User | None = None) -> None:
        digest = sha1(password.encode(), usedforsecurity=False).hexdigest().upper()
        known = is_told(self.source, digest) if "://" in self.source else is_listed(Path(self.source), digest.encode())
        if known:
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


def is_told(address: str, digest: str) -> bool:
    answer: Future[set[str]] = Future()

    def ask() -> None:
        try:
            answer.set_result(rests(address + digest[:KNOWN]))
        except BaseException as error:
            answer.set_exception(error)

    # beside this one, because no limit of a socket holds for the name server, or for an answer that comes in drops
    Thread(target=ask, daemon=True).start()
    try:
        return digest[KNOWN:] in answer.result(SECONDS)
    except (OSError, HTTPException, ValueError) as error:
        SILENCES.inc()
        reason = str(error) or type(error).__name__
        logger.warning("A password was accepted without asking whether it is known from a breach (%s)", reason)
        return False


def rests(url: str) -> set[str]:
    """What follows the characters in the URL, of each sum that the service knows. Raises OSError, HTTPException, or
    ValueError for what is no such answer.
    """
    request = Request(url, headers={"Add-Padding": "true", "User-Agent": "1CNG portal"})
    with OPENER.open(request, timeout=SECONDS) as response:
        lines = response.read(MOST_BYTES).decode("ascii").splitlines()
    found = [LINE.fullmatch(line) for line in lines]
    if not found or not all(found):
        raise ValueError("The answer is no list of sums")
    return {one[1] for one in found if one and int(one[2])}  # what was seen 0 times is padding


class StayThere(HTTPRedirectHandler):
    """Nobody else is asked: a redirect is an error."""

    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        return None


OPENER = build_opener(StayThere)
