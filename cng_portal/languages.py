"""Languages: English is complete. Others are a preview for who chooses one; what they lack stays English.

A catalogue is compiled from its .po file into the data folder when a process starts, by Babel, so that a fresh machine
needs no gettext and nothing is written beside the code. `make messages` brings the .po files up to date.
"""

import os
from collections.abc import Callable
from functools import cache

from babel import Locale
from babel.messages.mofile import write_mo
from babel.messages.pofile import read_po
from django.conf import settings
from django.contrib.auth import get_user_model
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.shortcuts import redirect
from django.utils import translation
from django.utils.cache import patch_vary_headers
from django.utils.http import url_has_allowed_host_and_scheme
from django.utils.translation import gettext_noop
from django.views.decorators.http import require_POST

# What allauth's e-mails say and no file of ours does: so `make messages` keeps what it is in other languages.
OF_ALLAUTH = [
    gettext_noop("Hello from %(site_name)s!"),
    gettext_noop("Password Reset Email"),
    gettext_noop("Thank you for using %(site_name)s!\n%(site_domain)s"),
    gettext_noop(
        "You're receiving this email because you or someone else has requested a password reset for your user account.\n"
        "It can be safely ignored if you did not request a password reset. Click the link below to reset your password."
    ),
]
YEAR_SECONDS = 365 * 24 * 3600
# Babel knows which digits a language writes, and formats with 0 to 9 all the same.
DIGITS = {"mymr": str.maketrans("0123456789", "၀၁၂၃၄၅၆၇၈၉")}


def compile_catalogues() -> None:
    """Bring the compiled catalogues up to date; each is whole or not there, also while another process does the same."""
    for source in (settings.BASE_DIR / "cng_portal" / "locale").glob("*/LC_MESSAGES/django.po"):
        target = settings.DATA_DIR / "locale" / source.parts[-3] / "LC_MESSAGES" / "django.mo"
        if target.exists() and target.stat().st_mtime_ns == source.stat().st_mtime_ns:
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        draft = target.with_suffix(f".{os.getpid()}")
        with source.open("rb") as messages, draft.open("wb") as compiled:
            write_mo(compiled, read_po(messages, locale=source.parts[-3]))
        os.utime(draft, ns=(source.stat().st_atime_ns, source.stat().st_mtime_ns))
        draft.replace(target)


@cache
def locale_of(language: str) -> Locale:
    return Locale.parse(language, sep="-")


def current_locale() -> Locale:
    return locale_of(translation.get_language() or "en")


def digits(text: object) -> str:
    """The text with the digits of the reader's language: `၉၉,၄၅၅.၇၉` in Burmese."""
    table = DIGITS.get(current_locale().default_numbering_system)
    return str(text).translate(table) if table else str(text)


def chosen_language(get_response: Callable[[HttpRequest], HttpResponse]) -> Callable[[HttpRequest], HttpResponse]:
    """The language of the cookie, else English: no browser's preference leads anybody into a half-translated portal.

    Who is signed in and has chosen one reads in that: accounts.middleware.personal_preferences.
    """

    def middleware(request: HttpRequest) -> HttpResponse:
        wanted = request.COOKIES.get(settings.LANGUAGE_COOKIE_NAME, "")
        language = wanted if wanted in dict(settings.LANGUAGES) else settings.LANGUAGE_CODE
        with translation.override(language):
            response = get_response(request)
        response.headers.setdefault("Content-Language", language)
        patch_vary_headers(response, ["Cookie"])
        return response

    return middleware


@require_POST
def choose_language(request: HttpRequest) -> HttpResponse:
    """Keep the language, in a cookie for who is signed out and with the person who is signed in, and go back to where they
    were; another one than those offered changes nothing.
    """
    back = request.POST.get("next", "")
    inside = url_has_allowed_host_and_scheme(back, {request.get_host()}, require_https=request.is_secure())
    # never redirect(back), which would take what was sent for the name of an address
    response = HttpResponseRedirect(back) if inside else redirect("dashboard")
    if (language := request.POST.get("language")) in dict(settings.LANGUAGES):
        keep_language(request, response, language)
        if request.user.is_authenticated:
            get_user_model().objects.filter(pk=request.user.pk).update(language=language)
    return response


def keep_language(request: HttpRequest, response: HttpResponse, language: str) -> None:
    """In this browser, so that its sign-in page speaks it too."""
    response.set_cookie(
        settings.LANGUAGE_COOKIE_NAME,
        language,
        max_age=YEAR_SECONDS,
        samesite="Lax",
        secure=request.is_secure(),
        httponly=True,
    )
