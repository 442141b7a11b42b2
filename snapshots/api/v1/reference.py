"""The reference of /api/v1, made from its schema: operations with examples for curl, and the objects they return."""

import json
import re
from dataclasses import dataclass
from typing import Any

from django.utils.html import escape
from django.utils.safestring import SafeString, mark_safe

from .api import WRITES, api
from .problems import STATUSES, TYPES

# Types of problems that no class of errors stands for.
OTHER_TYPES = ("rate-limited", "key-reused", "in-progress", "changed", "refused")


@dataclass(frozen=True, kw_only=True)
class Field:
    name: str
    type: str
    text: SafeString
    is_required: bool = False


@dataclass(frozen=True, kw_only=True)
class Entry:
    """An operation. In `curl`, shell variables stand for the reader's values: $ID, $SECRET, $SNAPSHOT …"""

    id: str
    method: str
    path: str
    title: str
    text: SafeString
    arguments: list[Field]
    returns: str  # the name of an object
    is_list: bool
    curl: str


def build_reference(base: str) -> dict[str, Any]:
    """Return the context of the reference page. `base` is the portal's URL."""
    schema = api.get_openapi_schema()
    objects = schema["components"]["schemas"]
    groups: dict[str, list[Entry]] = {}
    for path, methods in schema["paths"].items():
        for method, operation in methods.items():
            groups.setdefault(operation["tags"][0], []).append(build_entry(base, path, method, operation, objects))
    shown = {
        name.removesuffix("Row"): fields_of(content) for name, content in objects.items() if is_shown(name, content)
    }
    statuses = {status: with_code(text) for status, text in STATUSES.items()}
    return {"groups": groups, "objects": shown, "statuses": statuses, "types": sorted({*TYPES.values(), *OTHER_TYPES})}


def is_shown(name: str, content: dict[str, Any]) -> bool:
    is_argument = content.get("additionalProperties") is False or name.endswith(("Filters", "Paging"))
    return content.get("type") == "object" and not is_argument and not name.endswith("Page")


def with_code(text: str) -> SafeString:
    """Return HTML in which `words` between backticks are code."""
    return mark_safe(re.sub("`(.+?)`", r"<code>\1</code>", escape(text)))


def build_entry(base: str, path: str, method: str, operation: dict[str, Any], objects: dict[str, Any]) -> Entry:
    parameters = [parameter for parameter in operation["parameters"] if parameter["in"] != "path"]
    arguments = [
        Field(
            name=each["name"],
            type=type_of(each["schema"]),
            text=with_code(each.get("description", "")),
            is_required=each["required"],
        )
        for each in parameters
    ]
    body = operation.get("requestBody")
    example = None
    if body:
        content = objects[name_of(body["content"]["application/json"]["schema"])]
        arguments = fields_of(content) + arguments
        example = content["example"]
    success = next(code for code in operation["responses"] if int(code) < 300)
    returns = name_of(operation["responses"][success]["content"]["application/json"]["schema"])
    is_list = returns.endswith("Page")
    if is_list:
        returns = name_of(objects[returns]["properties"]["items"]["items"])
    return Entry(
        id=operation["operationId"],
        method=method.upper(),
        path=path,
        title=operation["summary"],
        text=with_code(operation["description"]),
        arguments=arguments,
        returns=returns.removesuffix("Row"),
        is_list=is_list,
        curl=write_curl(f"{base}{path}", method, parameters, example),
    )


def write_curl(url: str, method: str, parameters: list[dict[str, Any]], example: dict[str, Any] | None) -> str:
    url = url.replace("{snapshot_id}", "$SNAPSHOT").replace("{volume_id}", "$VOLUME")
    url = url.replace("{operation_id}", "$OPERATION")
    required = {each["name"]: f"${each['name'].upper()}" for each in parameters if each["required"]}
    if required:
        url += "?" + "&".join(f"{name}={value}" for name, value in required.items())
    lines = ['curl -u "$ID:$SECRET"']
    if method in WRITES:
        lines.append(f"-X {method.upper()}" if example is None or method != "post" else "")
        lines.append('-H "Idempotency-Key: $(cat /proc/sys/kernel/random/uuid)"')
    if example is not None:
        # The shell fills in what is outside of the single quotes.
        text = json.dumps(example)
        for name in ("$VOLUME", "$DAY"):
            text = text.replace(name, f"'{name}'")
        lines.append(f"--json '{text}'")
    return " \\\n  ".join([*filter(None, lines), f'"{url}"'])


def fields_of(content: dict[str, Any]) -> list[Field]:
    required = content.get("required", [])
    return [
        Field(name=name, type=type_of(each), text=with_code(each.get("description", "")), is_required=name in required)
        for name, each in content.get("properties", {}).items()
    ]


def name_of(schema: dict[str, Any]) -> str:
    return str(schema.get("$ref", "")).rpartition("/")[2]


def type_of(schema: dict[str, Any]) -> str:
    """Return the type in words, such as “list of Rate” or “date-time or null”."""
    if name := name_of(schema):
        return name
    if "anyOf" in schema:
        return " or ".join(type_of(each) for each in schema["anyOf"])
    if "allOf" in schema:
        return type_of(schema["allOf"][0])
    if schema.get("type") == "array":
        return f"list of {type_of(schema['items'])}"
    if "enum" in schema:
        return f"one of {', '.join(schema['enum'])}"
    return str(schema.get("format") or schema.get("type", "any"))
