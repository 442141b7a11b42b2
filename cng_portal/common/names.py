"""Rules for all names: which characters they may contain, and when two names are the same."""

import unicodedata
from typing import Any

import regex
from django import forms
from django.core.exceptions import ValidationError
from django.db import models
from django.utils.translation import gettext as _

MAX_NAME_LENGTH = 120
# Case folding and normalizing give at most three characters each. Shorter than MAX_NAME_LENGTH allows in theory, because
# PostgreSQL indexes no value over 2,704 bytes.
MAX_NAME_KEY_LENGTH = 576

# Scripts need these between letters; Burmese has the zero-width space where a line may break.
JOINERS = "\u200b\u200c\u200d"
# Control and format characters, line separators, surrogates, private use and unassigned characters, and those that Unicode
# itself declares invisible. The blank Braille pattern is a symbol to Unicode, but shows nothing.
_INVISIBLE = r"[\p{Cc}\p{Cf}\p{Cs}\p{Co}\p{Cn}\p{Zl}\p{Zp}\p{Default_Ignorable_Code_Point}\u2800]"
_EMOJI_STYLE = r"(?<=\p{Emoji})\ufe0f"  # the variation selector that phones add to an emoji
_FORBIDDEN = regex.compile(rf"(?!{_EMOJI_STYLE}){_INVISIBLE}")
_IGNORED = regex.compile(rf"[{JOINERS}]|\ufe0f")


def clean_name(text: str, *, max_length: int = MAX_NAME_LENGTH) -> str:
    """Return the name in the form in which it is stored: NFC, with single spaces and none at the ends.

    Raises ValidationError for a name that is empty, too long or contains an invisible character (codes
    "required", "max_length" and "invisible").
    """
    require_visible(text, allowed=JOINERS)
    name = " ".join(unicodedata.normalize("NFC", text).split())
    key = fold_name(name)
    if not name:
        raise ValidationError(_("Enter a name."), code="required")
    if not key:  # nothing but joiners
        raise _invisible()
    if len(name) > max_length or len(key) > MAX_NAME_KEY_LENGTH:
        raise ValidationError(
            _("The name has %(length)s characters; the limit is %(limit)s. Shorten it."),
            code="max_length",
            params={"length": len(name), "limit": max_length},
        )
    return name


def require_visible(text: str, *, allowed: str = "") -> str:
    """Return the text. Raises ValidationError if it has an invisible character other than those `allowed`."""
    if any(match[0] not in allowed for match in _FORBIDDEN.finditer(text)):
        raise _invisible()
    return text


def _invisible() -> ValidationError:
    return ValidationError(
        _("This contains a character that can't be displayed, such as a line break. Remove it."), code="invisible"
    )


def fold_name(text: str) -> str:
    """Return the key by which names are compared: two names are the same exactly when their keys are.

    Case, Unicode form, kinds and numbers of spaces and invisible joiners make no difference. Computed here and not by
    the database, so that it is the same on every database.
    """
    visible = " ".join(_IGNORED.sub("", text).split())
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", visible).casefold())


def name_contains(text: str, path: str = "") -> models.Q:
    """Match rows whose name contains the text, by their `name_key`. `path` leads to the model, such as `vm__`."""
    key = fold_name(text)
    # No name has a NUL, and PostgreSQL refuses one in a parameter.
    return models.Q(**{f"{path}name_key__contains": key}) if key and "\0" not in key else models.Q(pk=None)


def is_same_name(first: str, second: str) -> bool:
    return fold_name(first) == fold_name(second)


def to_name(text: str, *, default: str, max_length: int = MAX_NAME_LENGTH) -> str:
    """Turn another system's name into a valid one, or return `default` if nothing visible is left."""
    visible = _FORBIDDEN.sub(lambda match: match[0] if match[0] in JOINERS else " ", text)
    name = " ".join(unicodedata.normalize("NFC", visible).split())[:max_length].strip()
    while len(fold_name(name)) > MAX_NAME_KEY_LENGTH:
        name = name[:-1].strip()
    return name if fold_name(name) else default


class NameFormField(forms.CharField):
    """A form field for a name, cleaned by `clean_name`."""

    def __init__(self, *, max_length: int = MAX_NAME_LENGTH, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.name_length = max_length
        self.widget.attrs.setdefault("maxlength", max_length)

    def clean(self, value: Any) -> str:
        name: str = super().clean(value)
        return clean_name(name, max_length=self.name_length) if name else name


class NameField(models.CharField):
    """A name: cleaned by `clean_name` in every form, admin page and `full_clean`."""

    def __init__(self, *args: Any, max_length: int = MAX_NAME_LENGTH, **kwargs: Any) -> None:
        super().__init__(*args, max_length=max_length, **kwargs)

    def deconstruct(self) -> Any:
        """A CharField to migrations, so that changed rules need no migration."""
        name, _path, args, kwargs = super().deconstruct()
        return name, "django.db.models.CharField", args, kwargs

    def formfield(self, **kwargs: Any) -> Any:
        return super().formfield(**{"form_class": NameFormField, **kwargs})

    def clean(self, value: Any, model_instance: models.Model | None) -> Any:
        if value in self.empty_values:
            return super().clean(value, model_instance)
        return super().clean(clean_name(value, max_length=self.max_length or MAX_NAME_LENGTH), model_instance)


class NameKeyField(models.CharField):
    """The folded form of the model's `name`, by which lists are searched. Computed on save, but not by `bulk_update`."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**{"max_length": MAX_NAME_KEY_LENGTH, "default": "", "editable": False, **kwargs})

    def deconstruct(self) -> Any:
        name, _path, args, kwargs = super().deconstruct()
        return name, "django.db.models.CharField", args, kwargs

    def pre_save(self, model_instance: models.Model, add: bool) -> str:
        key = fold_name(model_instance.name)  # type: ignore[attr-defined]
        setattr(model_instance, self.attname, key)
        return key
