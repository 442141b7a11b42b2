"""The pages of a path's history, and of what changed between two snapshots."""

from collections import Counter
from collections.abc import Iterator
from datetime import UTC
from typing import Any
from urllib.parse import urlencode
from uuid import UUID

from django.contrib import messages
from django.contrib.humanize.templatetags.humanize import intcomma
from django.http import Http404, HttpResponse, StreamingHttpResponse
from django.shortcuts import redirect, render
from django.urls import reverse
from django.utils.translation import gettext as _
from django.views.decorators.http import require_GET, require_POST

from cng_portal.accounts.requests import Request
from cng_portal.common.responses import csv_response, redirect_with_query
from snapshots.models import DiskImage, Snapshot
from snapshots.views.common import damage_of, get_changeable

from . import comparison, contents, names, unusual, versions
from .services import MAX_TEXT, PAGE_SIZE
from .views import MAX_START, attempt, get_disk, get_readable, is_fallback, read_number, read_path

MAX_CHOICES = 100
MAX_FOLDERS = 50


@require_GET
def history(request: Request, snapshot_id: UUID, disk_id: UUID, part: int) -> HttpResponse:
    """List the snapshots and backups of the volume that hold a path."""
    snapshot = get_readable(request, snapshot_id)
    disk = get_disk(snapshot, disk_id)
    path, _number = read_path(request)
    if not path:
        return redirect("snapshots:folder", snapshot_id, disk_id, part)
    context = {
        "snapshot": snapshot,
        "disk": disk,
        "part": part,
        "damage": damage_of([disk]),
        "name": names.show(path[-1]),
        "shown_path": names.show_path(path),
        "parent_query": urlencode({"path": names.to_parameter(path[:-1])}),
        "history": versions.load_history(disk, part, path, request.user),
        "max_versions": versions.MAX_VERSIONS,
    }
    return render(request, "snapshots/files/history.html", context)


@require_GET
def compare(request: Request, snapshot_id: UUID, disk_id: UUID) -> HttpResponse:
    """Compare a disk with the same volume's in another snapshot, by default the previous one."""
    snapshot, disk, choices, other = read_pair(request, snapshot_id, disk_id)
    folder, kind, text = read_filter(request)
    start = read_number(request, "from", maximum=MAX_START) or 0
    result, error = attempt(lambda: comparison.compare(*in_order(disk, other))) if other else (None, "")
    changes = result.changes if result else []
    if not folder and all(change.path.startswith(b"0/") for change in changes):
        folder = b"0"
    in_folder = comparison.filtered(result, folder, "", text) if result else []
    listed = [change for change in in_folder if not kind or change.kind == kind]
    start = start if start < len(listed) else 0
    counts = Counter(change.kind for change in in_folder) + Counter({"": len(in_folder)})
    here = reverse("snapshots:compare_files", args=[snapshot_id, disk_id])

    def url(**parameters: Any) -> str:
        return f"{here}?{to_query(other, folder, kind, text, **parameters)}"

    last = start + PAGE_SIZE
    shown = listed[start:last]
    if other:
        shown = contents.compare_contents(*in_order(disk, other), shown)
    context = {
        "snapshot": snapshot,
        "disk": disk,
        "damage": damage_of([disk]),
        "choices": choices,
        "other": other,
        "pair": in_order(disk, other) if other else None,
        "result": result,
        "error": error,
        "kind": kind,
        "text": text,
        "folder": to_parameter(folder),
        "crumbs": [
            {"name": name, "url": url(folder=to_parameter(path), **{"from": ""})} for name, path in crumbs(folder)
        ],
        "tabs": [
            {"label": label, "count": intcomma(counts[key]), "url": url(kind=key), "active": key == kind}
            for key, label in {"": _("All"), **comparison.KINDS}.items()
        ],
        "folders": [
            {"total": total, "url": url(folder=to_parameter(total.path)) if total.path else ""}
            for total in comparison.total_by_folder(listed, folder)[:MAX_FOLDERS]
        ],
        "changes": shown,
        "form": {"left_out": unknown_filters(request)},
        "page": {"is_fallback": is_fallback(request, start)},
        "first": start + 1,
        "last": min(last, len(listed)),
        "total": len(listed),
        "max_changes": comparison.MAX_CHANGES,
        "previous_url": url(**{"from": max(0, start - PAGE_SIZE)}) if start else "",
        "next_url": url(**{"from": last}) if last < len(listed) else "",
        "csv_url": f"{reverse('snapshots:compare_files_csv', args=[snapshot_id, disk_id])}?"
        f"{to_query(other, folder, kind, text)}",
    }
    return render(request, "snapshots/files/compare.html", context)


@require_GET
def compare_csv(request: Request, snapshot_id: UUID, disk_id: UUID) -> HttpResponse | StreamingHttpResponse:
    """Download the changes that the page's filter selects."""
    if unknown_filters(request):
        return redirect_with_query(request, "snapshots:compare_files", snapshot_id, disk_id)
    _snapshot, disk, _choices, other = read_pair(request, snapshot_id, disk_id)
    result, _error = attempt(lambda: comparison.compare(*in_order(disk, other))) if other else (None, "")
    if result is None:  # The page says why.
        return redirect_with_query(request, "snapshots:compare_files", snapshot_id, disk_id)
    rows: Iterator[list[object]] = (
        [
            change.kind,
            change.shown_path,
            change.old_path if change.kind == comparison.RENAMED else "",
            change.record.kind,
            change.old.size if change.old else "",
            change.new.size if change.new else "",
            change.changed_at.astimezone(UTC).isoformat(timespec="seconds") if change.changed_at else "",
        ]
        for change in comparison.filtered(result, *read_filter(request))
    )
    columns = ["change", "path", "old_path", "kind", "old_bytes", "new_bytes", "changed_at"]
    return csv_response("changes", columns, rows)


def read_pair(
    request: Request, snapshot_id: UUID, disk_id: UUID
) -> tuple[Snapshot, DiskImage, list[DiskImage], DiskImage | None]:
    """Return (snapshot, its disk, the disks to compare it with, the chosen one or None if there is none)."""
    snapshot = get_readable(request, snapshot_id)
    disk = get_disk(snapshot, disk_id)
    disks = versions.readable_disks(disk, request.user).exclude(pk=disk.pk)
    choices = list(disks[:MAX_CHOICES])
    if chosen := request.GET.get("with", ""):
        other = next((each for each in choices if str(each.pk) == chosen), None)
        if other is None:
            raise Http404
        return snapshot, disk, choices, other
    older = (each for each in choices if is_older(each, disk))
    return snapshot, disk, choices, next(older, choices[0] if choices else None)


def is_older(disk: DiskImage, other: DiskImage) -> bool:
    at, other_at = disk.snapshot.ready_at, other.snapshot.ready_at
    return at is not None and other_at is not None and at < other_at


def in_order(disk: DiskImage, other: DiskImage) -> tuple[DiskImage, DiskImage]:
    return (disk, other) if is_older(disk, other) else (other, disk)


def read_filter(request: Request) -> tuple[bytes, str, str]:
    """Return (folder as in a catalogue, kind of change or "", text)."""
    kind = request.GET.get("kind", "")
    text = request.GET.get("q", "").strip()[:MAX_TEXT]
    folder = b"/".join(names.from_parameter(request.GET.get("folder", "")))
    return folder, kind if kind in comparison.KINDS else "", text


def unknown_filters(request: Request) -> list[str]:
    return [_("Kind")] if request.GET.get("kind", "") not in ("", *comparison.KINDS) else []


def to_query(other: DiskImage | None, folder: bytes, kind: str, text: str, /, **changed: Any) -> str:
    current = {"with": other.pk if other else "", "folder": to_parameter(folder), "kind": kind, "q": text}
    return urlencode({name: value for name, value in (current | changed).items() if value})


def to_parameter(folder: bytes) -> str:
    return names.to_parameter(folder.split(b"/")) if folder else ""


def crumbs(folder: bytes) -> list[tuple[str, bytes]]:
    """Return [(name, path)] of the folder and those above it, without the first partition."""
    parts = folder.split(b"/") if folder else []
    above = [(names.show(name), b"/".join(parts[: position + 1])) for position, name in enumerate(parts)]
    return above if parts and parts[0] != b"0" else above[1:]


@require_POST
def keep_removing(request: Request, snapshot_id: UUID) -> HttpResponse:
    """Let the portal remove a snapshot that it kept because an unusual change followed."""
    snapshot = get_changeable(request, snapshot_id)
    unusual.keep_removing(snapshot=snapshot, user=request.user)
    messages.success(request, _("“%(name)s” is removed as usual again.") % {"name": snapshot.name})
    return redirect("snapshots:snapshot", snapshot.pk)
