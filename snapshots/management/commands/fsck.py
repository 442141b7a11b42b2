from argparse import ArgumentParser
from typing import Any

from django.core.management import BaseCommand, CommandError
from tqdm import tqdm

from cng_portal.inventory.models import Location
from snapshots.maintenance import fsck


class Command(BaseCommand):
    help = (
        "Compare what the portal believes with what storage holds and what is charged, both ways. It may run while the "
        "portal works. Ends with 1 when there was something to find, mended or not."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--location", action="append", metavar="CODE", help="Only there; may be given repeatedly.")
        parser.add_argument("--read", action="store_true", help="Read every snapshot and compare its checksum.")
        parser.add_argument("--repair", action="store_true", help="Mend what can be mended in one way only.")
        parser.add_argument("--explain", action="store_true", help="Say what each finding means, and look at nothing.")

    def handle(self, *, location: list[str] | None, read: bool, repair: bool, explain: bool, **options: Any) -> None:
        if explain:
            self.explain(fsck.EXPLANATIONS)
            return
        locations = Location.objects.all()
        if location:
            locations = locations.filter(pk__in=location)
            if missing := sorted(set(location) - {one.pk for one in locations}):
                raise CommandError(f"There is no location {', '.join(missing)}.")
        found: dict[str, int] = {}
        mended = 0
        with tqdm(unit=" things", disable=None) as bar:
            for one in locations:
                for finding in fsck.look(one, read=read, progress=bar.update):
                    found[finding.code] = found.get(finding.code, 0) + 1
                    outcome = ""
                    if repair and finding.mend:
                        done = finding.mend()
                        mended += done
                        outcome = " Mended." if done else " It could not be mended now."
                    elif finding.mend:
                        outcome = " --repair mends it."
                    detail = f": {finding.detail}" if finding.detail else ""
                    self.stdout.write(f"{finding.code} {finding.location} {finding.thing}{detail}{outcome}")
        if not found:
            self.stdout.write("Portal, storage and billing agree.")
            if not read:
                self.stdout.write("No bytes were read: scheduled verifications do that, or fsck --read at once.")
            return
        self.explain(found)
        total = sum(found.values())
        raise CommandError(
            f"{total} {'finding' if total == 1 else 'findings'}, {mended} mended. Run it again to see what is left."
            if repair
            else f"{total} {'finding' if total == 1 else 'findings'}."
        )

    def explain(self, codes: Any) -> None:
        for code in codes:
            explanation = fsck.EXPLANATIONS[code]
            self.stdout.write(f"\n{code}: {explanation.title}")
            self.stdout.write(f"  What it means: {explanation.means}")
            self.stdout.write(f"  What to do: {explanation.remedy}")
            self.stdout.write(f"  {explanation.repair}")
