from django.apps import AppConfig
from django.utils.translation import gettext_lazy as _


class SnapshotsConfig(AppConfig):
    name = "snapshots"
    verbose_name = _("Snapshots")

    def ready(self) -> None:
        from cng_portal.monitoring.metrics import register_collector, register_counter

        from . import approvals, recycle_bin, resource_links, system_checks, usage_check  # noqa: F401
        from .drills import proof
        from .files.children import FAILURES
        from .monitoring.status import collect_metrics

        register_collector(collect_metrics)
        register_collector(proof.collect_metrics)
        register_counter(FAILURES)
