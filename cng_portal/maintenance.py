"""The maintenance page: shown for every URL while the data folder contains a file `maintenance`.

The operator creates the file and removes it afterwards; no process has to be restarted. The page shows the file's text,
such as "Until 14:00, Yangon time.". It needs no database.
"""

from collections.abc import Callable

from django.conf import settings
from django.http import HttpRequest, HttpResponse
from django.template.loader import render_to_string
from django.utils.translation import gettext as _

from snapshots.api.errors import api_error

RETRY_AFTER_SECONDS = 300
MAX_NOTE_LENGTH = 500


def maintenance(get_response: Callable[[HttpRequest], HttpResponse]) -> Callable[[HttpRequest], HttpResponse]:
    def middleware(request: HttpRequest) -> HttpResponse:
        try:
            note = (settings.DATA_DIR / "maintenance").read_text(errors="replace")[:MAX_NOTE_LENGTH].strip()
        except FileNotFoundError:
            return get_response(request)
        sentence = _("The portal is being maintained. Try again later.")
        response = api_error(request, 503, f"{sentence} {note}".strip()) or HttpResponse(
            render_to_string("503.html", {"note": note}), status=503
        )
        response["Retry-After"] = str(RETRY_AFTER_SECONDS)
        response["Cache-Control"] = "no-store"
        return response

    return middleware
