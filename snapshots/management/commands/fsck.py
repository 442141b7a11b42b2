from argparse import ArgumentParser
from collections import Counter
from collections.abc import Iterable
from typing import Any

from django.core.management import BaseCommand, CommandError
from tqdm import tqdm

from cng_portal.inventory.models import Location
from snapshots.maintenance.findings import EXPLANATIONS
from snapshots.maintenance.fsck import check_location


class Command(BaseCommand):
    help = (
        "Compare the portal with its storage and its billing, in both directions. Safe to run while the portal works. "
        "Exits with 1 if it found anything, repaired or not."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--location", action="append", metavar="CODE", help="Only this location; can be repeated.")
        parser.add_argument("--read", action="store_true", help="Read every snapshot and compare its checksum.")
        parser.add_argument("--repair", action="store_true", help="Repair what has only one correct outcome.")
        parser.add_argument("--explain", action="store_true", help="Explain every kind of finding and check nothing.")

    def handle(self, *, location: list[str] | None, read: bool, repair: bool, explain: bool, **options: Any) -> None:
        if explain:
            self.explain(EXPLANATIONS)
            return
        codes: Counter[str] = Counter()
        repaired = 0
        with tqdm(unit=" items", disable=None) as bar:
            for each in find_locations(location):
                for finding in check_location(each, read=read, progress=bar.update):
                    codes[finding.code] += 1
                    outcome = ""
                    if repair and finding.repair:
                        is_repaired = finding.repair()
                        repaired += is_repaired
                        outcome = " Repaired." if is_repaired else " Could not be repaired now."
                    elif finding.repair:
                        outcome = " --repair can fix this."
                    detail = f": {finding.detail}" if finding.detail else ""
                    self.stdout.write(f"{finding.code} {finding.location} {finding.subject}{detail}{outcome}")
        if not codes:
            self.stdout.write("Portal, storage and billing agree.")
            if not read:
                self.stdout.write("No data was read: scheduled verifications do that, or fsck --read.")
            return
        self.explain(codes)
        findings = f"{codes.total()} {'finding' if codes.total() == 1 else 'findings'}"
        raise CommandError(
            f"{findings}, {repaired} repaired. Run fsck again to see what is left." if repair else f"{findings}."
        )

    def explain(self, codes: Iterable[str]) -> None:
        for code in codes:
            explanation = EXPLANATIONS[code]
            self.stdout.write(f"\n{code}: {explanation.title}")
            self.stdout.write(f"  Meaning: {explanation.meaning}")
            self.stdout.write(f"  What to do: {explanation.remedy}")
            self.stdout.write(f"  {explanation.repair}")


def find_locations(codes: list[str] | None) -> list[Location]:
    locations = Location.objects.filter(pk__in=codes) if codes else Location.objects.all()
    if missing := set(codes or []) - {location.pk for location in locations}:
        raise CommandError(f"No location {', '.join(sorted(missing))}.")
    return list(locations)
