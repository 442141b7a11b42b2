"""Responses: fragments for htmx, and CSV."""

import csv
from collections.abc import Iterable, Iterator
from typing import Any

from django.http import HttpRequest, HttpResponse, StreamingHttpResponse
from django.shortcuts import redirect, render
from django.urls import reverse
from django.utils.cache import patch_vary_headers


def is_fragment(request: HttpRequest) -> bool:
    """Return whether htmx requests a fragment, as opposed to a boosted link or a page of its history."""
    htmx = request.htmx  # type: ignore[attr-defined]  # of django-htmx
    return bool(htmx) and not htmx.boosted and not htmx.history_restore_request


def render_part(request: HttpRequest, template: str, part: str, context: dict[str, Any]) -> HttpResponse:
    """Render the page, or only its partial `part` when htmx requests a fragment."""
    response = render(request, f"{template}#{part}" if is_fragment(request) else template, context)
    patch_vary_headers(response, ["HX-Request"])
    return response


def redirect_with_query(request: HttpRequest, name: str, *args: object) -> HttpResponse:
    """Redirect an export with invalid parameters to its page, which names them."""
    return redirect(f"{reverse(name, args=args)}?{request.GET.urlencode()}")


class Echo:
    def write(self, value: str) -> str:
        return value


# The last four are what Excel accepts for the first four in East Asian locales.
FORMULAS = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")


# A spreadsheet may split cells at these.
SEPARATORS = " ;,|\"'"


def cell(value: object) -> object:
    """Quote text that a spreadsheet could run as a formula."""
    if isinstance(value, str) and value.lstrip(SEPARATORS).startswith(FORMULAS):
        return f"'{value}"
    return value


def csv_response(name: str, columns: list[str], rows: Iterable[list[object]]) -> StreamingHttpResponse:
    writer = csv.writer(Echo())

    def lines() -> Iterator[str]:
        yield "\ufeff"  # tells Excel that it is UTF-8
        yield writer.writerow(columns)
        for row in rows:
            yield writer.writerow([cell(value) for value in row])

    return StreamingHttpResponse(
        lines(),
        content_type="text/csv; charset=utf-8",
        headers={"Content-Disposition": f'attachment; filename="{name}.csv"'},
    )
