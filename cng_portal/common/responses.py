"""Answers that several apps give: a part of a page to htmx, and CSV."""

import csv
from collections.abc import Iterable, Iterator
from typing import Any

from django.http import HttpRequest, HttpResponse, StreamingHttpResponse
from django.shortcuts import render
from django.utils.cache import patch_vary_headers


def is_fragment(request: HttpRequest) -> bool:
    """Whether htmx asks for a part of the page: neither a boosted link nor a page that it restores from its history."""
    htmx = request.htmx  # type: ignore[attr-defined]  # of django-htmx
    return bool(htmx) and not htmx.boosted and not htmx.history_restore_request


def render_part(request: HttpRequest, template: str, part: str, context: dict[str, Any]) -> HttpResponse:
    """The whole page, or its partial `part` alone when htmx asks for a fragment."""
    response = render(request, f"{template}#{part}" if is_fragment(request) else template, context)
    patch_vary_headers(response, ["HX-Request"])
    return response


class Echo:
    def write(self, value: str) -> str:
        return value


# the last four are what Excel takes for the first four in East Asian settings
FORMULAS = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")


# Where a spreadsheet splits a line at these, what follows them begins a cell of its own.
SEPARATORS = " ;,|\"'"


def cell(value: object) -> object:
    """Quote text that a spreadsheet could take for a formula: names are the customer's own words."""
    if isinstance(value, str) and value.lstrip(SEPARATORS).startswith(FORMULAS):
        return f"'{value}"
    return value


def csv_response(name: str, columns: list[str], rows: Iterable[list[object]]) -> StreamingHttpResponse:
    writer = csv.writer(Echo())

    def lines() -> Iterator[str]:
        yield "\ufeff"  # or Excel would not read it as UTF-8
        yield writer.writerow(columns)
        for row in rows:
            yield writer.writerow([cell(value) for value in row])

    return StreamingHttpResponse(
        lines(),
        content_type="text/csv; charset=utf-8",
        headers={"Content-Disposition": f'attachment; filename="{name}.csv"'},
    )
