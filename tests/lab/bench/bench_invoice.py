"""An invoice of 10,000 lines, every other one with a name in Myanmar script: its PDF, and a page of it."""

import statistics
import time
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime, timedelta
from uuid import uuid4

from django.conf import settings
from django.core.management import call_command
from django.test import Client
from django.urls import reverse

from billing import closing
from billing.models import Invoice, ServiceKind, UsageSegment
from billing.pricing.packages import create_package
from tests.factories import CustomerFactory, LocationFactory, ProjectFactory, UserFactory
from tests.lab.bench import Measure

FEW, MANY = 1_000, 10_000
NAMES = ("nightly-database", "ရန်ကုန် ဒေတာဘေ့စ်")
BEGINS = datetime(2040, 11, 2, tzinfo=UTC)
ENDS = datetime(2040, 12, 2, tzinfo=UTC)


def main() -> Iterator[Measure]:
    settings.ALLOWED_HOSTS = ["testserver"]
    call_command("collectstatic", interactive=False, verbosity=0)
    location = LocationFactory(code="1CNG-BEN-AZ01")
    create_package(location=location, kind=ServiceKind.BS_SNAPSHOT, rate_micro=400_000, starts_at=datetime.now(UTC))
    owners, invoices = {}, {}
    for count in (FEW, MANY):
        project = ProjectFactory(customer=CustomerFactory(postpaid=True))
        UsageSegment.objects.bulk_create(
            UsageSegment(
                resource_id=uuid4(),
                kind=ServiceKind.BS_SNAPSHOT,
                resource_name=f"{NAMES[number % 2]} {number}",
                customer=project.customer,
                project=project,
                location=location,
                size_gb=1 + number % 500,
                started_at=BEGINS + timedelta(minutes=number),
                ended_at=BEGINS + timedelta(minutes=number, hours=1 + number % 100),
            )
            for number in range(count)
        )
        owners[count] = Client()
        owners[count].force_login(UserFactory(member_of=project))
    closing.close_months(at=ENDS)
    for invoice in Invoice.objects.filter(month=date(2040, 11, 1)):
        invoices[invoice.line_count] = invoice

    def cpu_of(name: str, count: int) -> Callable[[], float]:
        def get() -> float:
            start = time.process_time()
            response = owners[count].get(reverse(f"billing:{name}", args=[invoices[count].pk]))
            assert response.status_code == 200
            return time.process_time() - start

        return get

    few, many = (best(cpu_of("invoice_pdf", count), runs=3) * 1000 / count for count in (FEW, MANY))
    yield Measure(f"PDF of {MANY:,} lines: CPU time of a line", many, " ms", at_most=1)
    note = f"{many:.2f} ms and {few:.2f} ms"
    yield Measure(f"PDF: CPU time of a line, {MANY:,} against {FEW:,} lines", many / few, "×", at_most=1.3, note=note)

    pages = {count: statistics.median(cpu_of("invoice", count)() for _run in range(11)) for count in (FEW, MANY)}
    note = f"{pages[MANY] * 1000:.0f} ms and {pages[FEW] * 1000:.0f} ms"
    what = f"first page of an invoice: {MANY:,} against {FEW:,} lines"
    yield Measure(what, pages[MANY] / pages[FEW], "×", at_most=1.3, note=note)
    size = len(owners[MANY].get(reverse("billing:invoice", args=[invoices[MANY].pk])).content) / 1000
    yield Measure(f"first page of an invoice of {MANY:,} lines: size", size, " kB", at_most=150)


def best(measure: Callable[[], float], *, runs: int) -> float:
    return min(measure() for _run in range(runs))
