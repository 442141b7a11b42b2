"""The customer guide: one page per subject. Its figures are computed by billing's own code."""

from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal

from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import render
from django.utils.functional import Promise
from django.utils.translation import gettext_lazy as _
from django.views.decorators.http import require_GET

from billing import rating
from billing.formulas import line_formula
from billing.models import ServiceKind
from billing.pricing.prices import Quote
from cng_portal.common.money import DEFAULT_CURRENCY, format_amount, format_price, format_rate, to_micro


@dataclass(frozen=True)
class Guide:
    slug: str
    title: str | Promise
    text: str | Promise
    icon: str


GUIDES = [
    Guide(
        "create-volume-snapshot",
        _("Create a volume snapshot"),
        _("Capture the exact state of one disk in five steps."),
        "circle-stack",
    ),
    Guide(
        "create-volume",
        _("Create a volume"),
        _("A new disk, empty or with the data of a snapshot."),
        "plus",
    ),
    Guide(
        "create-vm-snapshot",
        _("Create a VM snapshot"),
        _("Capture all disks of an instance together, with its configuration."),
        "server",
    ),
    Guide(
        "create-backup",
        _("Back up an instance"),
        _("Schedule backups and choose how many to keep."),
        "archive-box",
    ),
    Guide(
        "restore",
        _("Restore data"),
        _("Restore in place, create a new volume or instance, or undo a restore."),
        "arrow-uturn-left",
    ),
    Guide(
        "files",
        _("Get single files back"),
        _("Browse a snapshot, search in it, and download a file or a folder."),
        "folder",
    ),
    Guide(
        "locks",
        _("Lock a snapshot"),
        _("Until a day nobody can delete it, not even an administrator."),
        "lock-closed",
    ),
    Guide(
        "billing",
        _("Billing"),
        _("How hours are counted, when billing starts and ends, and an example."),
        "banknotes",
    ),
    Guide(
        "api",
        _("API"),
        _("Take snapshots from scripts, with OpenStack's command line or its Python SDK."),
        "code-bracket",
    ),
    Guide("keyboard", _("Keyboard"), _("Everything can be done without a mouse."), "command-line"),
]


@require_GET
def index(request: HttpRequest) -> HttpResponse:
    return render(request, "help/index.html", {"guides": GUIDES})


@require_GET
def guide(request: HttpRequest, slug: str) -> HttpResponse:
    by_slug = {guide.slug: guide for guide in GUIDES}
    if slug not in by_slug:
        raise Http404
    context = {"guide": by_slug[slug], "guides": GUIDES}
    if slug == "billing":
        context["example"] = example()
    return render(request, f"help/{slug.replace('-', '_')}.html", context)


def example() -> dict[str, str]:
    """Compute the example of the platform's administrator guide with the code that computes bills."""
    quote = Quote(
        kind=ServiceKind.BS_SNAPSHOT, size_gb=50, rate_micro=to_micro(Decimal("0.4")), currency=DEFAULT_CURRENCY
    )
    ready, deleted = datetime(2026, 11, 22, 10, 17, 23, tzinfo=UTC), datetime(2026, 11, 22, 13, 2, 10, tzinfo=UTC)
    hours = rating.hours(ready, deleted)
    amount_micro = quote.cost_of(hours)
    return {
        "rate": format_rate(quote.rate_micro, quote.currency),
        "size": str(quote.size_gb),
        "hourly": format_price(quote.hourly_micro, quote.currency),
        "ready": f"{ready:%H:%M:%S}",
        "deleted": f"{deleted:%H:%M:%S}",
        "hours": str(hours),
        "amount": format_amount(amount_micro, quote.currency),
        "line": line_formula(
            hours=hours,
            size_gb=quote.size_gb,
            rate_micro=quote.rate_micro,
            amount_micro=amount_micro,
            currency=quote.currency,
        ),
        "month": format_amount(quote.monthly_micro, quote.currency),
        "month_hours": str(rating.HOURS_PER_MONTH),
    }
