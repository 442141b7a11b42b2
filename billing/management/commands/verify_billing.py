from typing import Any

from django.core.management.base import BaseCommand, CommandError
from django.utils import timezone
from tqdm import tqdm

from billing import verification
from cng_portal.accounts.models import Customer


class Command(BaseCommand):
    help = "Recompute every amount from usage, and compare. Lists the differences and exits with 1 if there are any."

    def handle(self, **options: Any) -> None:
        customers = Customer.objects.count()
        with tqdm(total=customers, unit=" customers", disable=None) as bar:
            differences = verification.all_differences(at=timezone.now(), progress=bar.update)
        if differences:
            raise CommandError("\n".join(differences))
        self.stdout.write(f"All amounts of {customers} customers are what they should be.")
