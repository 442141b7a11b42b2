from django.apps import AppConfig
from django.utils.module_loading import autodiscover_modules
from django.utils.translation import gettext_lazy as _


class ActivityConfig(AppConfig):
    name = "cng_portal.activity"
    label = "activity"
    verbose_name = _("Activity log")

    def ready(self) -> None:
        from . import receivers  # noqa: F401  # connects them

        # Each app registers its actions in its module `activity`.
        autodiscover_modules("activity")
