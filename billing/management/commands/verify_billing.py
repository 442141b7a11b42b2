from typing import Any

from django.core.management.base import BaseCommand, CommandError
from django.utils import timezone
from tqdm import tqdm

from billing import verification
from cng_portal.accounts.models import Customer


class Command(BaseCommand):
    help = (
        "Recompute every amount from what happened, and compare. Ends with 1 and the differences where there are any."
    )

    def handle(self, **options: Any) -> None:
        customers = Customer.objects.count()
        with tqdm(total=customers, unit=" customers", disable=None) as bar:
            found = verification.all_differences(at=timezone.now(), progress=bar.update)
        if found:
            raise CommandError("\n".join(found))
        self.stdout.write(f"All amounts of {customers} customers are what they should be.")
