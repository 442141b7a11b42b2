"""Locale of the texts, numbers and dates of a page."""

from babel import Locale
from django.utils import translation


def current_locale() -> Locale:
    return Locale.parse(translation.get_language() or "en", sep="-")
