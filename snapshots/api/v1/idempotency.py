"""Idempotency-Key: a client that got no response repeats its write, which is done once and gets the same response.

A key is stored for a day with the hash of its request. A refused request frees its key, because nothing was done. If the
process dies or an unexpected error occurs, the key stays in use, because the outcome is unknown.
"""

from collections.abc import Callable
from datetime import datetime, timedelta
from hashlib import sha256

from django.http import HttpRequest, HttpResponse
from django.utils.translation import gettext as _

from cng_portal.accounts.models import ApplicationCredential, IdempotencyKey

from .problems import Problem, invalid, problem_of

KEEP_FOR = timedelta(days=1)
HEADERS = ("Content-Type", "Location", "ETag")


def run_once(
    request: HttpRequest, credential: ApplicationCredential, action: Callable[[], HttpResponse], *, at: datetime
) -> HttpResponse:
    """Return the response of the action, or the stored one if the request is a repeat."""
    key = request.headers.get("Idempotency-Key")
    if key is None:
        return action()
    if not 0 < len(key) <= 255 or not key.isascii() or not key.isprintable():
        raise invalid("Idempotency-Key", _("A key has 1 to 255 printable characters."))
    keys = IdempotencyKey.objects.filter(credential=credential, key=key)
    keys.filter(created_at__lt=at - KEEP_FOR).delete()
    request_hash = hash_request(request)
    row, is_first = keys.get_or_create(
        credential=credential, key=key, defaults={"request_hash": request_hash, "created_at": at}
    )
    if not is_first:
        return replay(row, request_hash)
    try:
        response = action()
    except Exception as error:
        if problem_of(error):
            row.delete()
        raise
    headers = {name: response[name] for name in HEADERS if name in response}
    answer = {"status": response.status_code, "headers": headers, "body": response.text}
    keys.update(answer=answer)
    return response


def hash_request(request: HttpRequest) -> str:
    parts = [str(request.method).encode(), request.get_full_path().encode(), request.body]
    return sha256(b"\0".join(parts)).hexdigest()


def replay(row: IdempotencyKey, request_hash: str) -> HttpResponse:
    if row.request_hash != request_hash:
        raise Problem(422, _("This Idempotency-Key was used for another request. Use a new key."), "key-reused")
    if row.answer is None:
        raise Problem(
            409,
            _("A request with this Idempotency-Key is being processed. Try again in a moment."),
            "in-progress",
            headers={"Retry-After": "1"},
        )
    answer = row.answer
    return HttpResponse(
        answer["body"], status=answer["status"], headers=answer["headers"] | {"Idempotency-Replayed": "true"}
    )


def delete_old(*, now: datetime) -> int:
    return IdempotencyKey.objects.filter(created_at__lt=now - KEEP_FOR).delete()[0]
