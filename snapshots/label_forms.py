"""The forms of tags and notes."""

from collections.abc import Iterable
from typing import Any

from django import forms
from django.core.exceptions import ValidationError
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from cng_portal.inventory.models import MAX_TAG_LENGTH, Tag

from .labels import MAX_TAGS, clean_note, parse_tags


class AddTagsForm(forms.Form):
    """`add` are names, separated by commas."""

    add = forms.CharField(
        label=gettext_lazy("Add tags"),
        required=False,
        max_length=MAX_TAGS * (MAX_TAG_LENGTH + 2),
        help_text=gettext_lazy("Short names, up to 40 characters each. Separate several with commas."),
        widget=forms.TextInput(attrs={"autocomplete": "off", "spellcheck": "false", "list": "tag-names"}),
    )

    def clean_add(self) -> list[str]:
        return parse_tags(self.cleaned_data["add"])


class TagNames(forms.MultipleChoiceField):
    """Names of tags. One that a colleague removed meanwhile is no error, because there is nothing left to change."""

    widget = forms.CheckboxSelectMultiple

    def valid_value(self, value: str) -> bool:
        return True


class LabelsForm(AddTagsForm):
    """The tags and the note of one volume or snapshot. `keep` are the names of present tags that stay.

    `shown` and `shown_note` are what the page had, so that what a colleague changed meanwhile isn't taken for the user's
    own change.
    """

    keep = TagNames(label=gettext_lazy("Tags"), required=False)
    note = forms.CharField(
        label=gettext_lazy("Note"),
        required=False,
        help_text=gettext_lazy("Up to 500 characters. Everyone who can see the project can read it."),
        widget=forms.Textarea(attrs={"rows": 4}),
    )
    shown = forms.Field(required=False, widget=forms.MultipleHiddenInput)
    shown_note = forms.CharField(required=False, strip=False, widget=forms.HiddenInput)
    field_order = ["keep", "add", "note"]

    def __init__(self, *args: Any, tags: list[Tag], note: str, **kwargs: Any) -> None:
        self.present = [tag.name for tag in tags]
        initial = {"keep": self.present, "shown": self.present, "note": note, "shown_note": note}
        super().__init__(*args, initial=initial, **kwargs)
        if tags or "keep" in self.data:
            self.fields["keep"].choices = [(name, name) for name in self.present]  # type: ignore[attr-defined]
        else:
            del self.fields["keep"]

    def clean_note(self) -> str:
        return clean_note(self.cleaned_data["note"])

    @property
    def removed(self) -> list[str]:
        """Return the tags that were unticked."""
        return [name for name in self.cleaned_data["shown"] or [] if name not in self.cleaned_data.get("keep", [])]

    @property
    def gone(self) -> list[str]:
        """Return the tags that the user left as they were shown, and that a colleague removed meanwhile."""
        shown = self.cleaned_data["shown"] or []
        return [name for name in self.cleaned_data.get("keep", []) if name in shown and name not in self.present]

    @property
    def changed_note(self) -> str | None:
        """Return the new note, or None if the user left it as it was shown."""
        note: str = self.cleaned_data["note"]
        return None if note == "\n".join(self.cleaned_data["shown_note"].splitlines()) else note


class TagManyForm(AddTagsForm):
    """Tags to add to all selected, and those to remove of the ones that some of them have."""

    remove = TagNames(label=gettext_lazy("Remove tags"), required=False)

    def __init__(self, *args: Any, names: Iterable[str], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        choices = [(name, name) for name in names]
        if choices or "remove" in self.data:
            self.fields["remove"].choices = choices  # type: ignore[attr-defined]
        else:
            del self.fields["remove"]

    def clean(self) -> dict[str, Any]:
        data = super().clean() or self.cleaned_data
        if not self.errors and not data.get("add") and not data.get("remove"):
            raise ValidationError(_("Enter a tag to add, or select one to remove."))
        return data
