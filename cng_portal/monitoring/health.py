"""Whether this process and what it stands on work, for load balancers and supervisors: `/healthz` and `/readyz`.

They answer before everything else: no session, no sign-in, no check of the host's name, no redirect to HTTPS, because who
asks is a machine that knows an address and a port. They ask no storage: the scheduler does, and what it found is read.
"""

import logging
from collections.abc import Callable
from datetime import timedelta
from functools import cache

from django.core.cache import cache as shared_cache
from django.db import DatabaseError, connection
from django.db.migrations.loader import MigrationLoader
from django.http import HttpRequest, HttpResponse, HttpResponseNotAllowed, JsonResponse
from django.utils import timezone

from cng_portal import full_disk
from cng_portal.inventory.models import Location
from cng_portal.monitoring import metrics

logger = logging.getLogger(__name__)
GetResponse = Callable[[HttpRequest], HttpResponse]

OK = "ok"
# A storage that the scheduler, which asks every minute, has not asked for this long is not known to answer.
UNKNOWN_AFTER = timedelta(minutes=5)


def probes(get_response: GetResponse) -> GetResponse:
    """Middleware, before all that asks the database or the host's name."""
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
    """The process answers. Nothing else is asked, so that a database that is away does not get it restarted."""
    return HttpResponse("ok\n", content_type="text/plain; charset=utf-8")


def readyz(request: HttpRequest) -> HttpResponse:
    """`{"status": …, "parts": {part: "ok" or what is wrong}}`. Four queries at most.

    200 and `ready`; 200 and `degraded` when a storage does not answer or the disk is full: pages still read, and taking
    every web server away for one location would help nobody; 503 and `not ready` when requests cannot be served, which
    is also so when no storage answers at all.
    """
    parts: dict[str, str] = {}
    serves = True
    for name, check in CHECKS.items():
        try:
            parts[name] = check() if serves else "not asked, because of the above"
        except DatabaseError:  # its words may name users and addresses, so they go to the log alone
            logger.exception("Not ready: %s", name)
            parts[name] = "does not answer"
        serves = serves and parts[name] == OK
    storages = storage_parts() if serves else {}
    parts |= storages
    if serves and full_disk.is_full():
        parts["disk"] = "full: pages read, but nothing can be changed"
    if storages and all(text == SILENT for text in storages.values()):
        serves = False
    status = "ready" if all(text == OK for text in parts.values()) else "degraded" if serves else "not ready"
    return JsonResponse({"status": status, "parts": parts}, status=200 if serves else 503)


def check_database() -> str:
    with connection.cursor() as cursor:
        cursor.execute("SELECT 1")
    return OK


def check_migrations() -> str:
    """Newer ones than ours are fine: the next version brings them while this one still serves."""
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


SILENT = "does not answer"
CHECKS = {"database": check_database, "migrations": check_migrations, "cache": check_cache}


def storage_parts() -> dict[str, str]:
    asked_since = timezone.now() - UNKNOWN_AFTER
    parts = {}
    for location in Location.objects.active().select_related("storage_check"):
        check = getattr(location, "storage_check", None)
        if check is None or check.checked_at is None or check.checked_at < asked_since:
            text = "not asked lately: is a scheduler running?"
        else:
            text = SILENT if check.reason else OK
        parts[f"storage {location.code}"] = text
    return parts
