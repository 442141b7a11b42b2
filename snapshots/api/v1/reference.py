"""The reference of /api/v1, made from its schema: operations with examples for curl, and the objects they return."""

import json
from dataclasses import dataclass
from typing import Any

from .api import WRITES, api
from .problems import STATUSES, TYPES

# Types of problems that no class of errors stands for.
OTHER_TYPES = ("rate-limited", "key-reused", "in-progress", "changed", "refused")


@dataclass(frozen=True, kw_only=True)
class Field:
    name: str
    type: str
    text: str
    is_required: bool = False


@dataclass(frozen=True, kw_only=True)
class Entry:
    """An operation. In `curl`, shell variables stand for the reader's values: $ID, $SECRET, $SNAPSHOT …"""

    id: str
    method: str
    path: str
    title: str
    text: str
    arguments: list[Field]
    returns: str  # the name of an object
    curl: str


def build_reference(base: str) -> dict[str, Any]:
    """Return the context of the reference page. `base` is the portal's URL."""
    schema = api.get_openapi_schema()
    objects = schema["components"]["schemas"]
    groups: dict[str, list[Entry]] = {}
    for path, methods in schema["paths"].items():
        for method, operation in methods.items():
            groups.setdefault(operation["tags"][0], []).append(build_entry(base, path, method, operation, objects))
    shown = {name: fields_of(content) for name, content in objects.items() if is_shown(name, content)}
    return {"groups": groups, "objects": shown, "statuses": STATUSES, "types": sorted({*TYPES.values(), *OTHER_TYPES})}


def is_shown(name: str, content: dict[str, Any]) -> bool:
    is_body = content.get("additionalProperties") is False
    return content.get("type") == "object" and not is_body and not name.endswith(("Row", "Page"))


def build_entry(base: str, path: str, method: str, operation: dict[str, Any], objects: dict[str, Any]) -> Entry:
    parameters = [parameter for parameter in operation["parameters"] if parameter["in"] != "path"]
    arguments = [
        Field(
            name=each["name"],
            type=type_of(each["schema"]),
            text=each.get("description", ""),
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
    return Entry(
        id=operation["operationId"],
        method=method.upper(),
        path=path,
        title=operation["summary"],
        text=operation["description"],
        arguments=arguments,
        returns=returns.removesuffix("Page"),
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
        Field(name=name, type=type_of(each), text=each.get("description", ""), is_required=name in required)
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
    return str(schema.get("format") or schema.get("type", "any"))
