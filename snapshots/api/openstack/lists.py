"""Filters, order and pages of the API's lists. Pages continue after the row named by `marker`, by key."""

from collections.abc import Callable
from typing import Any

from django.db.models import Q, QuerySet
from django.utils.http import urlencode
from django.utils.translation import gettext as _

from .calls import Call, bad_request, not_found, parse_id

MAX_ROWS = 1000
# Sent by clients that also work for administrators; here they change nothing.
IGNORED = {"all_tenants", "project_id"}


def parse_filters(call: Call, filters: dict[str, Callable[[str], Q]]) -> Q:
    """Combine the filters of the URL. Raises a 400 for an unknown one."""
    condition = Q()
    for name, value in call.query.items():
        if name in filters:
            condition &= filters[name](value)
        elif name not in {"limit", "marker", "offset", "sort", "sort_key", "sort_dir"} | IGNORED:
            raise bad_request(_("“%(name)s” is not a filter of this list.") % {"name": name})
    return condition


def parse_order(call: Call, keys: dict[str, str]) -> tuple[str, bool]:
    """Return the field to order by, and whether descending. Newest first by default. Raises a 400."""
    text = call.query.get("sort", "")
    key, _colon, direction = text.partition(":")
    key = key or call.query.get("sort_key", "") or "created_at"
    direction = direction or call.query.get("sort_dir", "") or "desc"
    if key not in keys or direction not in ("asc", "desc"):
        raise bad_request(
            _("Sort by one of %(keys)s, such as “sort=%(key)s:asc”.")
            % {"keys": ", ".join(keys), "key": next(iter(keys))}
        )
    return keys[key], direction == "desc"


def parse_limit(call: Call) -> int:
    text = call.query.get("limit", str(MAX_ROWS))
    if not text.isdecimal() or len(text) > 9:
        raise bad_request(_("“limit” must be a whole number."))
    return min(int(text), MAX_ROWS)


def page_of(call: Call, rows: QuerySet[Any], keys: dict[str, str]) -> tuple[list[Any], list[dict[str, str]]]:
    """Return the rows of the page, and the link of the next one if there is one."""
    limit, (field, is_descending) = parse_limit(call), parse_order(call, keys)
    if call.query.get("offset", "0") != "0":
        raise bad_request(_("“offset” isn't supported. Use “marker”, the ID of the last row of the page before."))
    if marker := call.query.get("marker"):
        last = rows.filter(pk=parse_id(marker)).values_list(field, "pk").first()
        if last is None:
            raise not_found(_("The marker “%(marker)s”") % {"marker": marker[:100]})
        comparison = "lt" if is_descending else "gt"
        after = Q(**{f"{field}__{comparison}": last[0]}) | Q(**{field: last[0], f"pk__{comparison}": last[1]})
        rows = rows.filter(after)
    sign = "-" if is_descending else ""
    page = list(rows.order_by(f"{sign}{field}", f"{sign}pk")[: limit + 1])
    if len(page) <= limit:
        return page, []
    page = page[:limit]
    if not page:
        return page, []
    query = urlencode(call.query | {"marker": str(page[-1].pk)})
    return page, [{"rel": "next", "href": f"{call.request.build_absolute_uri(call.request.path)}?{query}"}]
