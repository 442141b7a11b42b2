"""The form of an application credential."""

import re
from datetime import timedelta
from ipaddress import ip_network
from typing import Any

from django import forms
from django.core.exceptions import ValidationError
from django.utils import timezone
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from cng_portal.accounts.credentials import MAX_NETWORKS, has_role
from cng_portal.accounts.models import Act, Project, Role, User
from cng_portal.common.names import NameFormField


class CredentialForm(forms.Form):
    name = NameFormField(
        label=gettext_lazy("Name"),
        help_text=gettext_lazy("Where it's used, such as “nightly backups” or “laptop”."),
        error_messages={"required": gettext_lazy("Enter a name.")},
        widget=forms.TextInput(attrs={"autocomplete": "off"}),
    )
    project = forms.ModelChoiceField(
        Project.objects.none(),
        label=gettext_lazy("Project"),
        empty_label=None,
        help_text=gettext_lazy("It sees and changes nothing outside this project."),
        error_messages={"required": gettext_lazy("Choose a project.")},
    )
    role = forms.ChoiceField(
        label=gettext_lazy("Role"),
        choices=[(role.value, role.label) for role in (Role.VIEWER, Role.MEMBER, Role.OWNER)],
        widget=forms.RadioSelect,
        initial=Role.MEMBER,
        help_text=gettext_lazy(
            "At most your own. A viewer only reads. The credential stops working if you lose the role."
        ),
    )
    acts = forms.MultipleChoiceField(
        label=gettext_lazy("Permissions"),
        choices=Act.choices,
        required=False,
        widget=forms.CheckboxSelectMultiple,
        initial=[Act.SNAPSHOT, Act.VOLUME, Act.RESTORE, Act.BILL],
        help_text=gettext_lazy("Besides listing volumes and snapshots, which every credential can do."),
    )
    valid_for = forms.TypedChoiceField(
        label=gettext_lazy("Expires"),
        choices=[
            ("30", gettext_lazy("In 30 days")),
            ("90", gettext_lazy("In 90 days")),
            ("365", gettext_lazy("In a year")),
            ("", gettext_lazy("Never")),
        ],
        coerce=int,
        empty_value=None,
        required=False,
        initial="90",
    )
    networks = forms.CharField(
        label=gettext_lazy("Allowed networks"),
        required=False,
        max_length=1000,
        help_text=gettext_lazy(
            "Addresses or networks, such as 203.0.113.0/24, separated by commas. Empty: from anywhere."
        ),
        widget=forms.TextInput(attrs={"autocomplete": "off", "spellcheck": "false"}),
    )

    def __init__(self, *args: Any, user: User, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.user = user
        self.fields["project"].queryset = Project.objects.changeable_by(user).order_by("name", "pk")  # type: ignore[attr-defined]

    def clean_networks(self) -> list[str]:
        networks = []
        for text in re.split(r"[\s,]+", self.cleaned_data["networks"].strip(" ,")):
            try:
                networks += [str(ip_network(text, strict=False))] if text else []
            except ValueError:
                raise ValidationError(
                    _("“%(text)s” is not an address or network. Write one like 203.0.113.7 or 203.0.113.0/24."),
                    params={"text": text},
                ) from None
        if len(networks) > MAX_NETWORKS:
            raise ValidationError(_("At most %(limit)s networks."), params={"limit": MAX_NETWORKS})
        return networks

    def clean(self) -> dict[str, Any]:
        cleaned: dict[str, Any] = super().clean() or {}
        project, role = cleaned.get("project"), cleaned.get("role")
        if project and role and not has_role(self.user, project.pk, role):
            own = Role(self.user.roles[project.pk]).label
            self.add_error("role", _("Your own role in this project is %(role)s. Choose at most that.") % {"role": own})
        days = cleaned.pop("valid_for", None)
        cleaned["expires_at"] = timezone.now() + timedelta(days=days) if days else None
        return cleaned
