from typing import Any

from django import forms
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from .registry import ACTIONS


class ActivityFilterForm(forms.Form):
    """Search, project and action. An invalid value is ignored."""

    q = forms.CharField(label=gettext_lazy("Search"), required=False, max_length=100)
    project = forms.ChoiceField(label=gettext_lazy("Project"), required=False)
    action = forms.ChoiceField(label=gettext_lazy("Action"), required=False)

    def __init__(self, *args: Any, projects: list[tuple[str, str]], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.fields["project"].choices = [("", _("All projects")), *projects]  # type: ignore[attr-defined]
        self.fields["action"].choices = [("", _("All actions")), *ACTIONS.items()]  # type: ignore[attr-defined]
        self.is_valid()

    @property
    def panel(self) -> list[forms.BoundField]:
        return [self["project"], self["action"]]

    @property
    def panel_count(self) -> int:
        return len(self.chosen.keys() - {"q"})

    @property
    def opens_panel(self) -> bool:
        return "filters" in self.data

    @property
    def chosen(self) -> dict[str, str]:
        return {name: value for name, value in self.cleaned_data.items() if value}
