from allauth.account.apps import AccountConfig
from django.utils.translation import gettext_lazy as _


class SignInConfig(AccountConfig):
    """allauth's app under a name of its own: Django admin would have two groups called Accounts."""

    verbose_name = _("Sign-in")
