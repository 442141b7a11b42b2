from django.apps import AppConfig
from django.utils.translation import gettext_lazy as _


class SnapshotsConfig(AppConfig):
    name = "snapshots"
    verbose_name = _("Snapshots")

    def ready(self) -> None:
        from cng_portal.accounts import backends

        from . import checks  # noqa: F401  # registers them
        from .models import Operation

        backends.SHOWN["has_work"] = Operation.objects.is_there_for_person()
