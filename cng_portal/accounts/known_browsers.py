"""Browsers in which a user has signed in before. Their failed attempts are counted separately, so that strangers who guess
passwords don't lock the user out.

The protocol is OWASP's, see
https://owasp.org/www-community/Slow_Down_Online_Guessing_Attacks_with_Device_Cookies. The cookie grants no
access: it names the counter.
"""

from secrets import token_urlsafe

from django.conf import settings
from django.core import signing
from django.http import HttpRequest, HttpResponse

from .models import User

KNOWN_BROWSER_COOKIE = f"{settings.COOKIE_PREFIX}known_browser"
SALT = "accounts.known_browser"
MAX_AGE_SECONDS = 180 * 24 * 3600
USERS_PER_BROWSER = 5


def read(request: HttpRequest) -> dict[str, str]:
    """{user id: the browser's id for that user}, in the order of their first sign-ins."""
    try:
        known = signing.loads(request.COOKIES.get(KNOWN_BROWSER_COOKIE, ""), salt=SALT, max_age=MAX_AGE_SECONDS)
    except signing.BadSignature:
        return {}
    return dict(known)


def browser_id(request: HttpRequest, email: str) -> str:
    """ "" unless the user with this address has signed in here before."""
    known = read(request)
    if not known:
        return ""
    user_id = User.objects.filter(email__iexact=email).values_list("pk", flat=True).first()
    return known.get(str(user_id), "")


def remember(request: HttpRequest, response: HttpResponse, user: User) -> None:
    known = read(request)
    known.setdefault(str(user.pk), token_urlsafe(12))
    newest = dict(list(known.items())[-USERS_PER_BROWSER:])
    response.set_cookie(
        KNOWN_BROWSER_COOKIE,
        signing.dumps(newest, salt=SALT, compress=True),
        max_age=MAX_AGE_SECONDS,
        secure=settings.SESSION_COOKIE_SECURE,
        httponly=True,
        samesite="Lax",
    )
