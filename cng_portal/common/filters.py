"""The filters of lists, for partials/filter_form.html."""

from collections.abc import Callable
from typing import Any

from django import forms
from django.utils.translation import gettext_lazy

Choices = list[tuple[str, Any]]  # a label may be lazy


class ChoiceFilter(forms.ChoiceField):
    """A filter. Choices from the database are read only when one is chosen or the field is rendered."""

    def __init__(self, label: Any, empty_label: Any, choices: Choices | None = None) -> None:
        self.empty_label = empty_label
        super().__init__(label=label, required=False)
        self.set_choices(lambda: choices or [])

    def set_choices(self, choices: Callable[[], Choices]) -> None:
        self.choices = lambda: [("", self.empty_label), *choices()]


class FilterForm(forms.Form):
    """The search and filters of a list. An invalid filter is ignored, and the page says so: partials/left_out.html."""

    use_required_attribute = False

    # Labels of invalid parameters that aren't fields.
    unknown: tuple[str, ...] = ()

    q = forms.CharField(label=gettext_lazy("Search"), required=False, max_length=120)

    @property
    def chosen(self) -> dict[str, str]:
        """Return the valid filters that differ from their defaults, for the query string."""
        self.is_valid()
        values = {name: self.cleaned_data.get(name) for name in self.fields}
        return {name: value for name, value in values.items() if value and value != self.fields[name].initial}

    @property
    def narrows(self) -> bool:
        return any(name != "sort" for name in self.chosen)

    @property
    def panel(self) -> list[forms.BoundField]:
        """Return the fields with choices, without search and order."""
        return [self[name] for name, field in self.fields.items() if isinstance(field, ChoiceFilter)]

    @property
    def panel_count(self) -> int:
        return sum(field.name in self.chosen for field in self.panel)

    @property
    def opens_panel(self) -> bool:
        """Return whether partials/filter_form.html requests the panel, which loads when it is opened."""
        return "filters" in self.data

    @property
    def left_out(self) -> list[str]:
        """Return the labels of the invalid filters."""
        return [*(str(self.fields[name].label) for name in self.errors), *self.unknown]
