"""The pages of a snapshot's files."""

from collections.abc import Callable
from typing import Any, TypeVar
from urllib.parse import urlencode
from uuid import UUID

from django.contrib import messages
from django.core.exceptions import PermissionDenied
from django.http import Http404, HttpRequest, HttpResponse, StreamingHttpResponse
from django.http.response import HttpResponseBase
from django.shortcuts import get_object_or_404, redirect, render
from django.urls import reverse
from django.utils.http import content_disposition_header
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy
from django.views.decorators.http import require_GET

from cng_portal.accounts.requests import Request
from snapshots.errors import ActionRefused
from snapshots.models import DiskImage, Snapshot, State
from snapshots.views.common import damage_of, get_snapshot, set_section

from . import limits, names, services

T = TypeVar("T")
ORDERS = {"name": gettext_lazy("Name"), "size": gettext_lazy("Size"), "changed": gettext_lazy("Changed")}
MAX_START = 10**6


@require_GET
def files(request: HttpRequest, snapshot_id: UUID) -> HttpResponse:
    """List the disks of a snapshot and their parts."""
    snapshot = get_readable(request, snapshot_id)
    disks = list(snapshot.disks.select_related("volume", "snapshot__location", "snapshot__project__customer"))
    # Only one is read, so that a machine of many disks doesn't take many times as long.
    chosen = next((disk for disk in disks if str(disk.pk) == request.GET.get("disk")), disks[0] if disks else None)
    parts, error = attempt(lambda: services.list_parts(chosen)) if chosen else ([], "")
    rows = [{"disk": disk, "is_chosen": disk is chosen, "parts": parts or [], "error": error} for disk in disks]
    context = {"snapshot": snapshot, "rows": rows, "damage": damage_of(disks)}
    return render(request, "snapshots/files/disks.html", context)


@require_GET
def folder(request: HttpRequest, snapshot_id: UUID, disk_id: UUID, part: int) -> HttpResponse:
    """List a folder, or search below it for `q`."""
    snapshot = get_readable(request, snapshot_id)
    disk = get_disk(snapshot, disk_id)
    path, number = read_path(request)
    text = request.GET.get("q", "").strip()[: services.MAX_TEXT].replace("\0", "")
    sort = request.GET.get("sort", "")
    order = sort if sort in ORDERS else "name"
    start = read_number(request, "from", maximum=MAX_START) or 0

    def list_from(start: int) -> tuple[services.Listing | None, str]:
        return attempt(lambda: services.list_folder(disk, part, path, number=number, order=order, start=start))

    listing, error = attempt(lambda: services.search(disk, part, path, text)) if text else list_from(start)
    if start and not text and listing and start >= listing.total:
        start = 0
        listing, error = list_from(start)
    here = reverse("snapshots:folder", args=[snapshot_id, disk_id, part])

    def url(**parameters: Any) -> str:
        current = {"path": names.to_parameter(path), "id": number, "sort": order if order != "name" else ""}
        return f"{here}?{urlencode({name: value for name, value in (current | parameters).items() if value})}"

    total = listing.total if listing else 0
    last = start + services.PAGE_SIZE
    context = {
        "snapshot": snapshot,
        "disk": disk,
        "part": part,
        "damage": damage_of([disk]),
        "listing": listing,
        "error": error,
        "text": text,
        "path": names.to_parameter(path),
        "shown_path": names.show_path(path),
        "here": here,
        "crumbs": [
            {"name": names.show(name), "query": urlencode({"path": names.to_parameter(path[: position + 1])})}
            for position, name in enumerate(path)
        ],
        "orders": [
            {"key": key, "label": label, "url": url(sort=key), "is_current": key == order}
            for key, label in ORDERS.items()
        ],
        "folder_url": url(),
        "form": {"left_out": [_("Order")] if sort not in ("", *ORDERS) else []},
        "page": {"is_fallback": is_fallback(request, start)},
        "first": start + 1,
        "last": min(last, total),
        "total": total,
        "previous_url": url(**{"from": max(0, start - services.PAGE_SIZE)}) if start and not text else "",
        "next_url": url(**{"from": last}) if last < total and not text else "",
        "archive_query": urlencode({"path": names.to_parameter(path)} | ({"id": number} if number else {})),
    }
    return render(request, "snapshots/files/folder.html", context)


@require_GET
def download(
    request: HttpRequest, snapshot_id: UUID, disk_id: UUID, part: int, *, is_folder: bool = False
) -> HttpResponseBase:
    """Send a file, or a folder as a tar archive."""
    snapshot = get_readable(request, snapshot_id)
    disk = get_disk(snapshot, disk_id)
    path, number = read_path(request)
    stream, error = attempt(
        lambda: services.start_download(disk, part, path, number=number, user=request.user, is_folder=is_folder)
    )
    if stream is None:
        messages.error(request, error)
        parent = names.to_parameter(path if is_folder else path[:-1])
        return redirect(
            f"{reverse('snapshots:folder', args=[snapshot_id, disk_id, part])}?{urlencode({'path': parent})}"
        )
    if client := request.META.get("gunicorn.socket"):
        client.settimeout(limits.SEND_SECONDS)
    name = names.file_name(path[-1]) if path else names.file_name(disk.volume_name.encode())
    # Compression would drop Content-Length, by which a client notices that a download broke.
    request.META.pop("HTTP_ACCEPT_ENCODING", None)
    return StreamingHttpResponse(
        stream,
        content_type="application/x-tar" if is_folder else "application/octet-stream",
        headers={
            "Content-Length": str(stream.size),
            "Content-Disposition": content_disposition_header(True, f"{name}.tar" if is_folder else name),
            "X-Content-Type-Options": "nosniff",
            "Content-Security-Policy": "sandbox",
            # nginx would buffer up to 1 GB of a customer's files, then stop reading until the client has them.
            "X-Accel-Buffering": "no",
        },
    )


def get_readable(request: Request, snapshot_id: UUID) -> Snapshot:
    """Return the snapshot. 404 for strangers and deleted snapshots, 403 with an explanation for viewers."""
    snapshot = get_snapshot(request.user, snapshot_id)
    set_section(request, snapshot)
    if snapshot.state == State.DELETED:
        raise Http404
    services.require_reader(request.user, snapshot)
    if request.impersonator:
        raise PermissionDenied(_("You are viewing the portal as a user. Their files stay private."))
    return snapshot


def get_disk(snapshot: Snapshot, disk_id: UUID) -> DiskImage:
    related = ("volume", "snapshot__location", "snapshot__project__customer")
    return get_object_or_404(DiskImage.objects.select_related(*related), snapshot=snapshot, pk=disk_id)


def read_path(request: HttpRequest) -> tuple[list[bytes], int | None]:
    return names.from_parameter(request.GET.get("path", "")), read_number(request, "id", maximum=2**64)


def is_fallback(request: HttpRequest, start: int) -> bool:
    """Return whether the first page stands in for one that doesn't exist."""
    return not start and request.GET.get("from", "") not in ("", "0")


def read_number(request: HttpRequest, name: str, *, maximum: int) -> int | None:
    text = request.GET.get(name, "")
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 21 and int(text) <= maximum else None


def attempt(read: Callable[[], T]) -> tuple[T | None, str]:
    """Return (result, ""), or (None, why not)."""
    try:
        return read(), ""
    except ActionRefused as error:
        return None, str(error)
