from datetime import date
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.utils import timezone
from tqdm import tqdm

from billing import closing
from billing.errors import Refused
from cng_portal.accounts.models import Customer
from cng_portal.common import money


class Command(BaseCommand):
    help = "Write the invoices of a month that is over, and of earlier months that have none. Can be run again."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("month", metavar="YYYY-MM")
        parser.add_argument("--dry-run", action="store_true", help="Report what would be written, without writing it.")

    def handle(self, *, month: str, dry_run: bool, **options: Any) -> None:
        try:
            first = date.fromisoformat(f"{month}-01")
        except ValueError:
            raise CommandError(f"“{month}” is not a month. Write it as 2026-11.") from None
        at = timezone.now()
        try:
            closing.require_month_is_over(first, at)
        except Refused as error:
            raise CommandError(str(error)) from None
        with tqdm(total=Customer.objects.count(), unit=" customers", disable=None) as bar:
            report = closing.close_months(at=at, through=first, dry_run=dry_run, progress=bar.update)
        would = "would be made" if dry_run else "made"
        self.stdout.write(f"{report.invoices} invoices {would}, with {report.lines} lines.")
        for currency, total_micro in sorted(report.totals.items()):
            self.stdout.write(f"Total: {money.format_amount(total_micro, currency)}")
        if report.failures:
            raise CommandError("\n".join(report.failures.values()))
