"""Valid names, and names that count as equal."""

import pytest
from django.core.exceptions import ValidationError

from cng_portal.accounts.models import Customer, Project, User
from cng_portal.common.names import MAX_NAME_KEY_LENGTH, MAX_NAME_LENGTH, clean_name, fold_name, is_same_name, to_name
from cng_portal.inventory.models import VirtualMachine, Volume
from snapshots.models import Draft, Snapshot

INVISIBLE = {
    "blank Braille pattern": "\u2800",
    "combining grapheme joiner": "\u034f",
    "variation selector": "\ufe0f",
    "Khmer inherent vowel": "\u17b4",
    "Mongolian variation selector": "\u180b",
    "Hangul filler": "\u3164",
    "zero-width space": "\u200b",
    "zero-width joiner": "\u200d",
    "private use": "\ue000",
    "unassigned": "\u0378",
    "tag": "\U000e0061",
    "lone surrogate": "\udcff",
    "no-break space": "\xa0",
    "line separator": "\u2028",
    "line break": "\n",
    "escape": "\x1b",
    "right-to-left override": "\u202e",
    "NUL": "\x00",
}


@pytest.mark.parametrize("character", INVISIBLE.values(), ids=INVISIBLE)
def test_a_name_of_nothing_but_an_invisible_character_is_refused(character: str) -> None:
    for name in (character, character * 3, f" {character} "):
        with pytest.raises(ValidationError):
            clean_name(name)


@pytest.mark.parametrize("character", sorted(set(INVISIBLE.values()) - {"\u200b", "\u200d", "\xa0"}))
def test_an_invisible_character_among_letters_is_refused(character: str) -> None:
    with pytest.raises(ValidationError, match="can't be displayed"):
        clean_name(f"web{character}01")


@pytest.mark.parametrize(
    ("typed", "stored"),
    [
        ("  web-01 ", "web-01"),
        ("two  blanks", "two blanks"),
        ("no\xa0break", "no break"),
        ("cafe\u0301", "café"),
        ("က\u200bခ", "က\u200bခ"),
        ("❤\ufe0f family 👨\u200d👩\u200d👧", "❤\ufe0f family 👨\u200d👩\u200d👧"),
        ("x" * MAX_NAME_LENGTH, "x" * MAX_NAME_LENGTH),
    ],
)
def test_a_name_is_stored_in_one_form(typed: str, stored: str) -> None:
    assert clean_name(typed) == stored
    assert clean_name(stored) == stored


@pytest.mark.parametrize("name", ["x" * (MAX_NAME_LENGTH + 1), "\u0390" * MAX_NAME_LENGTH * 2])
def test_a_long_name_is_refused(name: str) -> None:
    with pytest.raises(ValidationError, match="the limit is 120"):
        clean_name(name)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("Web", "wEB"),
        ("two  blanks", "two blanks"),
        ("no\xa0break", "no break"),
        ("cafe\u0301", "CAFÉ"),
        ("မြန်\u200bမာ", "မြန်မာ"),
        ("❤\ufe0f", "❤"),
        ("straße", "STRASSE"),
    ],
)
def test_names_that_look_the_same_are_the_same(first: str, second: str) -> None:
    assert is_same_name(first, second)
    assert fold_name(fold_name(first)) == fold_name(second)


@pytest.mark.parametrize(("first", "second"), [("web", "web-1"), ("a b", "ab"), ("2", "²")])
def test_names_that_look_different_are_different(first: str, second: str) -> None:
    assert not is_same_name(first, second)


@pytest.mark.parametrize(
    ("foreign", "name"),
    [
        ("web-01", "web-01"),
        ("two\nlines\x1b[0m", "two lines [0m"),
        ("  x\x07y ", "x y"),
        ("\u202eevil", "evil"),
        ("ကြိုး", "ကြိုး"),
        ("\u2800\u200b", "volume 1"),
        ("", "volume 1"),
        ("x" * 300, "x" * MAX_NAME_LENGTH),
    ],
)
def test_the_name_of_another_system_becomes_a_valid_one(foreign: str, name: str) -> None:
    assert to_name(foreign, default="volume 1") == name
    assert clean_name(name) == name
    assert len(fold_name(to_name("\u0390" * 300, default="volume 1"))) <= MAX_NAME_KEY_LENGTH


@pytest.mark.parametrize("model", [Customer, User, Project, VirtualMachine, Volume, Snapshot, Draft])
def test_every_model_cleans_its_names(model: type) -> None:
    field = model._meta.get_field("name")  # type: ignore[attr-defined]
    assert field.clean(" two  blanks ", None) == "two blanks"
    with pytest.raises(ValidationError, match="can't be displayed"):
        field.clean("two\nlines", None)
