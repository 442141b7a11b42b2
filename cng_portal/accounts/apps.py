from django.apps import AppConfig, apps
from django.utils.translation import gettext_lazy as _

# Names in Django admin for the apps of packages. allauth's would be a second group called Accounts.
GROUP_NAMES = {
    "account": _("Sign-in"),
    "auth": _("Permissions"),
    "django_tasks_database": _("Background tasks"),
    "mfa": _("Second factors"),
    "usersessions": _("Sessions"),
}


class AccountsConfig(AppConfig):
    name = "cng_portal.accounts"
    label = "accounts"
    verbose_name = _("Accounts")

    def ready(self) -> None:
        from . import signals  # noqa: F401  # connects them

        for label, name in GROUP_NAMES.items():
            apps.get_app_config(label).verbose_name = name
