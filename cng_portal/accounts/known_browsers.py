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
    """Return {user ID: the browser's ID for that user}, in the order of their first sign-ins."""
    try:
        browser_ids = signing.loads(request.COOKIES.get(KNOWN_BROWSER_COOKIE, ""), salt=SALT, max_age=MAX_AGE_SECONDS)
    except signing.BadSignature:
        return {}
    return dict(browser_ids)


def browser_id(request: HttpRequest, email: str) -> str:
    """Return the browser's ID for the user with this address, or "" if they haven't signed in here."""
    browser_ids = read(request)
    if not browser_ids:
        return ""
    user_id = User.objects.filter(email__iexact=email).values_list("pk", flat=True).first()
    return browser_ids.get(str(user_id), "")


def remember(request: HttpRequest, response: HttpResponse, user: User) -> None:
    browser_ids = read(request)
    browser_ids.setdefault(str(user.pk), token_urlsafe(12))
    newest = dict(list(browser_ids.items())[-USERS_PER_BROWSER:])
    response.set_cookie(
        KNOWN_BROWSER_COOKIE,
        signing.dumps(newest, salt=SALT, compress=True),
        max_age=MAX_AGE_SECONDS,
        secure=settings.SESSION_COOKIE_SECURE,
        httponly=True,
        samesite="Lax",
    )
