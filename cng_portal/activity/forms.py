from typing import Any

from django.utils.translation import gettext_lazy as _

from cng_portal.common.filters import ChoiceFilter, Choices, FilterForm

from .registry import ACTIONS


class ActivityFilterForm(FilterForm):
    project = ChoiceFilter(_("Project"), _("All projects"))
    action = ChoiceFilter(_("Action"), _("All actions"))

    def __init__(self, *args: Any, projects: Choices, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for name, choices in {"project": projects, "action": list(ACTIONS.items())}.items():
            field = self.fields[name]
            assert isinstance(field, ChoiceFilter)
            field.set_choices(lambda choices=choices: choices)
