from typing import Any

from django import forms
from django.utils.translation import gettext_lazy as _

from ..models import DrillPlan


class DrillPlanForm(forms.Form):
    """How often drills run, and of which snapshot. An empty interval: not at all."""

    NEWEST, RANDOM = "newest", "random"

    interval = forms.ChoiceField(
        label=_("Restore drills"),
        choices=[("", _("Off")), *DrillPlan.Interval.choices],
        required=False,
        widget=forms.RadioSelect,
    )
    pick = forms.ChoiceField(
        label=_("Which snapshot"),
        choices=[(NEWEST, _("The newest one")), (RANDOM, _("A random one of the last days"))],
        initial=NEWEST,
        widget=forms.RadioSelect,
    )
    random_days = forms.IntegerField(
        label=_("Days"),
        help_text=_("For a random one: how far back, 1 to 365 days."),
        min_value=1,
        max_value=365,
        required=False,
    )

    def clean(self) -> dict[str, Any]:
        answers = super().clean() or {}
        if answers.get("pick") == self.NEWEST:
            answers["random_days"] = None
        elif "random_days" in answers and not answers["random_days"]:
            self.add_error("random_days", _("Enter how many days back a random snapshot may be from."))
        return answers
