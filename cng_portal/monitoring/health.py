"""Liveness and readiness for load balancers and supervisors: `/healthz` and `/readyz`.

Both answer before every other middleware (sessions, sign-in, allowed hosts, HTTPS redirect), because probes connect to an
IP address and a port. They don't call the storage: the scheduler checks it, and readiness reads the result.
"""

from collections.abc import Callable
from datetime import timedelta
from functools import cache

import structlog
from django.core.cache import cache as shared_cache
from django.db import DatabaseError, connection
from django.db.migrations.loader import MigrationLoader
from django.http import HttpRequest, HttpResponse, HttpResponseNotAllowed, JsonResponse
from django.utils import timezone

from cng_portal.common import full_disk
from cng_portal.inventory.models import Location

from . import metrics

logger = structlog.get_logger(__name__)
GetResponse = Callable[[HttpRequest], HttpResponse]

OK, FAILING = "ok", "does not answer"
# The scheduler checks every storage each minute.
UNKNOWN_AFTER = timedelta(minutes=5)


def probes(get_response: GetResponse) -> GetResponse:
    """Middleware: answer the probes. Comes before everything that needs the database or the Host header."""
    answers = {"/healthz": healthz, "/readyz": readyz, "/metrics": metrics.metrics}

    def middleware(request: HttpRequest) -> HttpResponse:
        answer = answers.get(request.path_info)
        if answer is None:
            return get_response(request)
        if request.method not in ("GET", "HEAD"):
            return HttpResponseNotAllowed(["GET", "HEAD"])
        response = answer(request)
        response["Cache-Control"] = "no-store"
        response["X-Content-Type-Options"] = "nosniff"
        return response

    return middleware


def healthz(request: HttpRequest) -> HttpResponse:
    """Return ok. Checks nothing else, so that a database outage doesn't get the process restarted."""
    return HttpResponse("ok\n", content_type="text/plain; charset=utf-8")


def readyz(request: HttpRequest) -> HttpResponse:
    """Return `{"status": …, "parts": {part: "ok" or the problem}}`. At most four queries.

    - 200 `ready`.
    - 200 `degraded` when a storage fails or the disk is full. Pages still load, so the load balancer keeps the server.
    - 503 `not ready` when requests can't be served, or when every storage fails.
    """
    parts: dict[str, str] = {}
    serves = True
    for name, check in CHECKS.items():
        try:
            parts[name] = check() if serves else "not checked, because of the above"
        except DatabaseError:  # its message may contain users and hosts, so it goes to the log only
            logger.exception("readiness.failed", part=name)
            parts[name] = FAILING
        serves = serves and parts[name] == OK
    storages = storage_parts() if serves else {}
    parts |= storages
    if serves and full_disk.is_full():
        parts["disk"] = "full: pages load, but nothing can be changed"
    if storages and all(text == FAILING for text in storages.values()):
        serves = False
    status = "ready" if all(text == OK for text in parts.values()) else "degraded" if serves else "not ready"
    return JsonResponse({"status": status, "parts": parts}, status=200 if serves else 503)


def check_database() -> str:
    with connection.cursor() as cursor:
        cursor.execute("SELECT 1")
    return OK


def check_migrations() -> str:
    """Newer migrations than ours are fine: an upgrade applies them while this version still serves."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT app, name FROM django_migrations")
        applied = set(cursor.fetchall())
    return OK if newest_migrations() <= applied else "not migrated: run manage.py migrate"


@cache
def newest_migrations() -> set[tuple[str, str]]:
    return set(MigrationLoader(None).graph.leaf_nodes())


def check_cache() -> str:
    shared_cache.get("readyz")
    return OK


CHECKS = {"database": check_database, "migrations": check_migrations, "cache": check_cache}


def storage_parts() -> dict[str, str]:
    checked_since = timezone.now() - UNKNOWN_AFTER
    parts = {}
    for location in Location.objects.active().select_related("storage_check"):
        check = getattr(location, "storage_check", None)
        if check is None or check.checked_at is None or check.checked_at < checked_since:
            text = "not checked lately: is a scheduler running?"
        else:
            text = FAILING if check.error else OK
        parts[f"storage {location.code}"] = text
    return parts
