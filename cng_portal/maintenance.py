"""The maintenance page: shown for every address while there is a file `maintenance` in the data folder.

Whoever runs the portal touches the file before the work and removes it after; no process has to be restarted. What is
written in the file, a sentence such as "Until 14:00, Yangon time.", is shown. Nothing here asks the database.
"""

from collections.abc import Callable

from django.conf import settings
from django.http import HttpRequest, HttpResponse
from django.template.loader import render_to_string

RETRY_AFTER_SECONDS = 300
MOST_CHARACTERS = 500


def maintenance(get_response: Callable[[HttpRequest], HttpResponse]) -> Callable[[HttpRequest], HttpResponse]:
    def middleware(request: HttpRequest) -> HttpResponse:
        try:
            note = (settings.DATA_DIR / "maintenance").read_text(errors="replace")[:MOST_CHARACTERS].strip()
        except FileNotFoundError:
            return get_response(request)
        response = HttpResponse(render_to_string("503.html", {"note": note}), status=503)
        response["Retry-After"] = str(RETRY_AFTER_SECONDS)
        response["Cache-Control"] = "no-store"
        return response

    return middleware
