"""Forms for the profile, members and credentials."""

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from zoneinfo import available_timezones

from allauth.account.forms import AddEmailForm, ChangePasswordForm
from allauth.account.models import EmailAddress
from allauth.mfa import app_settings as mfa
from allauth.mfa.adapter import get_adapter
from allauth.mfa.base.forms import AuthenticateForm, ReauthenticateForm
from allauth.mfa.models import Authenticator
from allauth.mfa.totp.forms import ActivateTOTPForm
from allauth.mfa.totp.internal.auth import TOTP
from allauth.mfa.webauthn.forms import (
    AddWebAuthnForm,
    AuthenticateWebAuthnForm,
    LoginWebAuthnForm,
    ReauthenticateWebAuthnForm,
)
from django import forms
from django.core.cache import cache
from django.http import HttpRequest
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from cng_portal.common.names import NameFormField, require_visible

from . import signals
from .models import Role, Theme, User
from .services import set_verified_email


def time_zone_choices(default: str) -> list[tuple[str, str]]:
    return [("", default), *((name, name.replace("_", " ")) for name in sorted(available_timezones()))]


class DetailsForm(forms.ModelForm):
    class Meta:
        model = User
        fields = ["name", "time_zone", "date_format", "theme"]
        widgets = {"date_format": forms.RadioSelect, "theme": forms.RadioSelect}

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        customer = self.instance.customer
        default = _("Same as the account (%(zone)s)") % {"zone": customer.time_zone if customer else "UTC"}
        self.fields["time_zone"] = forms.ChoiceField(
            label=_("Time zone"),
            choices=time_zone_choices(default),
            required=False,
            help_text=_("Times are shown in this zone. Invoices use the account's."),
        )
        self.fields["name"].label = _("Name")
        self.fields["name"].help_text = _("Other members see it in lists and in the activity log.")
        self.fields["date_format"].label = _("Date format")
        self.fields["theme"] = forms.ChoiceField(
            label=_("Theme"), choices=Theme.choices, required=False, widget=forms.RadioSelect
        )


class ThemeForm(forms.Form):
    theme = forms.ChoiceField(choices=[choice for choice in Theme.choices if choice[0]])


class NewEmailForm(AddEmailForm):
    def clean_email(self) -> str:
        return require_visible(super().clean_email())

    def save(self, request: HttpRequest) -> EmailAddress:
        set_verified_email(self.user)
        return super().save(request)


class NewPasswordForm(ChangePasswordForm):
    def clean_oldpassword(self) -> str:
        try:
            return str(super().clean_oldpassword())
        except forms.ValidationError:
            signals.password_failed(self.user)
            raise


class InvitationForm(forms.Form):
    email = forms.EmailField(
        label=gettext_lazy("E-mail"),
        error_messages={"required": gettext_lazy("Enter an e-mail address.")},
    )
    role = forms.ChoiceField(
        label=gettext_lazy("Role"),
        choices=[(role.value, role.label) for role in (Role.VIEWER, Role.MEMBER, Role.OWNER)],
        widget=forms.RadioSelect,
        initial=Role.MEMBER,
        help_text=gettext_lazy(
            "Viewers can view everything but bills, and files unless they are shared. Members can also take, restore "
            "and delete snapshots, and read files. Owners can also see bills and manage members."
        ),
    )

    def clean_email(self) -> str:
        return require_visible(self.cleaned_data["email"])


class RoleForm(forms.Form):
    role = forms.ChoiceField(
        label=gettext_lazy("Role"),
        choices=[(role.value, role.label) for role in (Role.VIEWER, Role.MEMBER, Role.OWNER)],
        widget=forms.RadioSelect,
        help_text=InvitationForm.base_fields["role"].help_text,
    )


class SignUpForm(forms.Form):
    """For an invited user. The address is the invitation's."""

    name = NameFormField(
        label=gettext_lazy("Your name"),
        error_messages={"required": gettext_lazy("Enter your name. Other members see it.")},
    )
    password = forms.CharField(
        label=gettext_lazy("Password"),
        widget=forms.PasswordInput(attrs={"autocomplete": "new-password"}),
        strip=False,
        help_text=gettext_lazy("At least 8 characters, and not a common password."),
    )


@contextmanager
def reject_malformed_credential() -> Iterator[None]:
    """Report malformed credentials, which make allauth crash, as wrong ones."""
    try:
        yield
    except (AttributeError, LookupError, TypeError, ValueError, struct.error):
        raise get_adapter().validation_error("incorrect_code") from None


class AddPasskeyForm(AddWebAuthnForm):
    def clean(self) -> dict[str, Any]:
        with reject_malformed_credential():
            return super().clean()


class PasskeyMixin:
    user: User

    def clean_credential(self) -> Authenticator:
        try:
            with reject_malformed_credential():
                return super().clean_credential()
        except forms.ValidationError:
            signals.passkey_failed(self.user)
            raise


class PasskeyForm(PasskeyMixin, AuthenticateWebAuthnForm):
    pass


class PasskeySignInForm(PasskeyMixin, LoginWebAuthnForm):
    pass


class PasskeyConfirmationForm(PasskeyMixin, ReauthenticateWebAuthnForm):
    pass


# Seconds for which an app's code is valid.
CODE_LIFETIME = mfa.TOTP_PERIOD * (2 * mfa.TOTP_TOLERANCE + 1)


class ActivateAppForm(ActivateTOTPForm):
    """Mark the code that activates an app as used, so that it can't sign in too."""

    def clean_code(self) -> str:
        code: str = super().clean_code()
        app = TOTP(Authenticator(user=self.user, type=Authenticator.Type.TOTP))
        cache.set(app._get_used_cache_key(code), "y", timeout=CODE_LIFETIME)
        return code


class SingleUseCodeMixin:
    """Reject a used code for as long as it is valid. allauth forgets it after one period, despite MFA_TOTP_TOLERANCE."""

    authenticator: Authenticator

    def clean_code(self) -> str:
        code: str = super().clean_code()
        if self.authenticator.type == Authenticator.Type.TOTP:
            cache.touch(self.authenticator.wrap()._get_used_cache_key(code), CODE_LIFETIME)
        return code


class CodeForm(SingleUseCodeMixin, AuthenticateForm):
    pass


class CodeConfirmationForm(SingleUseCodeMixin, ReauthenticateForm):
    pass


class ProjectForm(forms.Form):
    name = NameFormField(label=gettext_lazy("Name"))
