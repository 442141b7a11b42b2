"""Idempotent forms: a form sent twice, by a double click, a proxy or a reload, is processed once.

`{% form_key %}` adds a random key to a form, and `submit_once` accepts each key once.
"""

from collections.abc import Callable
from datetime import timedelta
from functools import wraps
from typing import Any
from uuid import UUID

from django.contrib import messages
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import redirect
from django.utils import timezone
from django.utils.translation import gettext as _

from .models import Submission

FIELD = "form_key"
KEEP_FOR = timedelta(days=1)
View = Callable[..., HttpResponse]


def submit_once(view: View) -> View:
    """Process a form once, and redirect repeats to the result of the first.

    An invalid form doesn't use up its key, so that it can be corrected and sent again. If the process dies, the key stays
    used, because the outcome is unknown.
    """

    @wraps(view)
    def wrapper(request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        key = key_of(request)
        if key is None:
            return view(request, *args, **kwargs)
        Submission.objects.filter(user=request.user, created_at__lt=timezone.now() - KEEP_FOR).delete()
        submission, is_first = Submission.objects.get_or_create(key=key, defaults={"user": request.user})
        if not is_first:
            return repeat(request, submission)
        url = ""
        try:
            response = view(request, *args, **kwargs)
            url = response.get("Location", "")
        finally:
            if url:
                Submission.objects.filter(pk=key).update(url=url)
            else:
                submission.delete()
        return response

    return wrapper


def key_of(request: HttpRequest) -> UUID | None:
    try:
        return UUID(request.POST.get(FIELD, ""))
    except ValueError:
        return None


def repeat(request: HttpRequest, submission: Submission) -> HttpResponse:
    if submission.user_id != request.user.pk:
        raise Http404
    if not submission.url:
        messages.info(
            request, _("This form was already sent and is being processed. Reload the page to see the result.")
        )
    return redirect(submission.url or "dashboard")
