"""Whether the person has lately shown who they are: by signing in, or by confirming it once more."""

import time

from django.http import HttpRequest

CONFIRMED = "confirmed_at"
# After so long a costly act of an administrator asks for the password or a factor again.
SECONDS = 15 * 60


def confirm(request: HttpRequest) -> None:
    request.session[CONFIRMED] = time.time()


def is_fresh(request: HttpRequest) -> bool:
    return time.time() - request.session.get(CONFIRMED, 0) < SECONDS
