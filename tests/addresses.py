"""The URLs of the portal, read from the URL configuration."""

from collections.abc import Iterator
from typing import Any

from django.urls import URLResolver, get_resolver


def walk(resolver: Any, namespace: str, above: dict[str, str]) -> Iterator[tuple[str, dict[str, str]]]:
    for pattern in resolver.url_patterns:
        converters = getattr(pattern.pattern, "converters", {})
        groups = pattern.pattern.regex.groupindex
        parameters = above | {name: type(converters[name]).__name__ if name in converters else "" for name in groups}
        if isinstance(pattern, URLResolver):
            inside = f"{namespace}{pattern.namespace}:" if pattern.namespace else namespace
            yield from walk(pattern, inside, parameters)
        else:
            yield f"{namespace}{pattern.name or pattern.pattern}", parameters


# {name with its namespace, or the pattern of one without a name: {parameter: class of its converter}}
ADDRESSES = dict(walk(get_resolver(), "", {}))
