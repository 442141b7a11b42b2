"""Check the files and file systems of a restored disk.

What is found is said without names from the disk, because everybody who sees the project sees the drill, and viewers may not
read its files.
"""

import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import structlog
from django.utils.translation import gettext as _

from cng_portal.common.money import format_count

from ..files import catalogue, children
from ..files.cataloguing import beat_between, summarize
from ..files.reader.signatures import EXT, XFS
from ..files.services import FILE_SYSTEMS
from ..models import DiskImage, DrillCheck
from ..storage.contract import Driver, Heartbeat, StorageError
from .tools import ToolResult, find_tool, run_tool

logger = structlog.stdlib.get_logger(__name__)

Kind, Outcome = DrillCheck.Kind, DrillCheck.Outcome

E2FSCK_ERRORS_LEFT = 4  # a bit of its exit code
XFS_CORRUPT = 1  # xfs_repair's exit code with -n; also that of some failures of its own
# In the output of xfs_repair: its log has changes that -n doesn't replay, so that what follows may be wrong.
XFS_LOG_PENDING = b"valuable metadata changes in a log"
# Words of xfs_repair about itself: too little memory, or a file system that is newer than the program.
NOT_JUDGED = (b"memory", b"not supported", b"unsupported", b"unknown")


@dataclass(frozen=True)
class Check:
    """What one check found. `part` is the name of a partition."""

    kind: DrillCheck.Kind
    outcome: DrillCheck.Outcome
    detail: str
    part: str = ""


def check_content(image: int, disk: DiskImage, driver: Driver, heartbeat: Heartbeat) -> Iterator[Check]:
    """Yield the checks of the files and file systems in the image, an open file with the restored disk.

    Raises what the heartbeat raises.
    """
    try:
        parts = children.ask(image, {"command": "parts"})
    except children.ReaderFailed as error:
        yield Check(Kind.FILES, Outcome.SKIPPED, explain_reader(error))
        return
    yield check_files(image, disk, driver, heartbeat)
    for number, part in enumerate(parts, start=1):
        if part["is_readable"]:
            name = _("Partition %(number)s") % {"number": number} if len(parts) > 1 else ""
            yield check_file_system(image, part, name, heartbeat)


def check_files(image: int, disk: DiskImage, driver: Driver, heartbeat: Heartbeat) -> Check:
    """List the files of the restored disk and compare each entry with the list made after the capture."""
    with tempfile.TemporaryFile() as restored:
        try:
            listing = children.Download(image, {"command": "catalogue"}, on_progress=lambda _entries: heartbeat(0, 0))
            try:
                summary = summarize(listing.answer)
                for piece in catalogue.compress(beat_between(listing, heartbeat), summary):
                    restored.write(piece)
            finally:
                listing.close()
            restored.flush()
            count = sum(part["entries"] for part in summary["parts"])
            if not count and not any(part["unread"] for part in summary["parts"]):
                text = _("No file system was recognized, so the bytes alone were compared.")
                return Check(Kind.FILES, Outcome.SKIPPED, text)
            stored = driver.open_catalogue(disk.ref)
            if stored is None:
                text = _(
                    "%(count)s files and folders were found. There is no list from the capture to compare them with."
                )
                return Check(Kind.FILES, Outcome.SKIPPED, text % {"count": format_count(count)})
            return compare(stored, os.dup(restored.fileno()), count)
        except children.ReaderFailed as error:
            return Check(Kind.FILES, Outcome.SKIPPED, explain_reader(error))
        except (ValueError, StorageError) as error:
            logger.warning("drill.list_unusable", disk=str(disk.pk), error=str(error))
            text = _("The list of files from the capture can't be read, so the files couldn't be compared with it.")
            return Check(Kind.FILES, Outcome.SKIPPED, text)


def compare(stored: int, restored: int, count: int) -> Check:
    """Compare two lists of files, whose descriptors are closed. Raises ValueError for a damaged one."""
    missing = added = changed = 0
    with catalogue.opened(stored) as before, catalogue.opened(restored) as after:
        is_comparable = before.summary.get("reader") == after.summary["reader"]
        for old, new in catalogue.differences(before, after):
            missing += len(old.keys() - new.keys())
            added += len(new.keys() - old.keys())
            changed += len(old.keys() & new.keys())
    if not (missing or added or changed):
        text = _("%(count)s files and folders, the same as when the snapshot was taken.")
        return Check(Kind.FILES, Outcome.PASSED, text % {"count": format_count(count)})
    if not is_comparable:
        text = _("%(count)s files and folders were found. The list from the capture was made by an earlier version.")
        return Check(Kind.FILES, Outcome.SKIPPED, text % {"count": format_count(count)})
    text = _(
        "They aren't those of the list from the capture: %(missing)s missing, %(added)s more, %(changed)s changed."
    )
    return Check(Kind.FILES, Outcome.FAILED, text % {"missing": missing, "added": added, "changed": changed})


def explain_reader(error: children.ReaderFailed) -> str:
    logger.warning("drill.unreadable", reason=error.reason)
    return _("The portal couldn't read the files of this disk, so they weren't compared.")


def check_file_system(image: int, part: dict[str, Any], name: str, heartbeat: Heartbeat) -> Check:
    """Check the file system of a part without changing it."""

    def skip(text: str) -> Check:
        return Check(Kind.FILE_SYSTEM, Outcome.SKIPPED, text, name)

    kind, file_system = part["kind"], str(part["file_system"])[:20]
    file_system = str(FILE_SYSTEMS.get(file_system, file_system))
    start = part["start"] if isinstance(part["start"], int) else None
    tool = {EXT: "e2fsck", XFS: "xfs_repair"}.get(kind)
    if tool is None:
        return skip(_("The portal has no check for %(kind)s.") % {"kind": file_system})
    if start is None or (kind == XFS and start):
        return skip(_("%(tool)s can't check it inside of this partition or logical volume.") % {"tool": tool})
    path = find_tool(tool)
    if path is None:
        return skip(_("%(tool)s isn't installed on this server.") % {"tool": tool})
    arguments = {
        EXT: [path, "-f", "-n", f"{{image}}?offset={start}" if start else "{image}"],
        XFS: [path, "-n", "-f", "-P", "{image}"],
    }[kind]
    result = run_tool(image, arguments, lambda: heartbeat(0, 0))
    values = {"tool": tool, "kind": file_system}
    if result.problem == "slow":
        return skip(_("%(tool)s took too long and was stopped.") % values)
    if result.problem:
        return skip(_("This server can't run %(tool)s in isolation, so it wasn't run.") % values)
    if result.exit_code == 0:
        return Check(Kind.FILE_SYSTEM, Outcome.PASSED, _("%(kind)s: %(tool)s found no errors.") % values, name)
    if part["was_in_use"] or XFS_LOG_PENDING in result.output:
        return skip(
            _(
                "%(kind)s: it was in use when the snapshot was taken. Its journal is replayed when it is mounted, so a "
                "check before that proves nothing."
            )
            % values
        )
    if has_errors(kind, result):
        return Check(Kind.FILE_SYSTEM, Outcome.FAILED, _("%(kind)s: %(tool)s found errors.") % values, name)
    logger.warning("drill.tool_failed", tool=tool, exit_code=result.exit_code)
    return skip(_("%(tool)s couldn't check this file system.") % values)


def has_errors(kind: str, result: ToolResult) -> bool:
    """Return whether the tool found the file system damaged, rather than having failed itself."""
    if result.exit_code is None or result.exit_code < 0:
        return False
    if kind == EXT:
        return bool(result.exit_code & E2FSCK_ERRORS_LEFT)
    return result.exit_code == XFS_CORRUPT and not any(words in result.output.lower() for words in NOT_JUDGED)
