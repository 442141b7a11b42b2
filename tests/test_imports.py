"""Imports point one way: an app imports the apps below it and none above, and nothing imports the modules on top."""

import ast
from collections.abc import Iterator
from pathlib import Path

from django.conf import settings

# From the bottom to the top. The rest of cng_portal puts the portal together.
LAYERS = [
    *(
        f"cng_portal.{app}"
        for app in ("common", "support", "mail", "activity", "accounts", "notifications", "inventory", "monitoring")
    ),
    "billing",
    "snapshots",
    "cng_portal",
]
MODULES = sorted(
    path.relative_to(settings.BASE_DIR) for app in LAYERS[-3:] for path in (settings.BASE_DIR / app).rglob("*.py")
)


def layer(module: str) -> int | None:
    matches = (index for index, app in enumerate(LAYERS) if f"{module}.".startswith(f"{app}."))
    return next(matches, None)


def dependencies(path: Path) -> Iterator[str]:
    """Yield the modules that a module imports, and the apps whose URLs it names ("snapshots:row")."""
    package = list(path.parent.parts)
    for node in ast.walk(ast.parse((settings.BASE_DIR / path).read_text())):
        match node:
            case ast.Import(names=names):
                yield from (name.name for name in names)
            case ast.ImportFrom(module=module, names=names, level=level):
                base = ".".join([*package[: len(package) - level + 1], module or ""]).strip(".") if level else module
                yield from (f"{base}.{name.name}" for name in names)
            case ast.Constant(value=str(text)) if text.partition(":")[2].isidentifier():
                app = text.partition(":")[0]
                yield from (layer_name for layer_name in LAYERS if layer_name.rpartition(".")[2] == app)


def test_no_module_depends_on_one_above() -> None:
    violations = []
    for path in MODULES:
        own = layer(".".join(path.with_suffix("").parts))
        above = {name for name in dependencies(path) if (other := layer(name)) is not None and other > own}
        if "commands" in path.parts:  # an entry point, like cng_portal/wsgi.py
            above = {name for name in above if not name.startswith("cng_portal.")}
        violations += [f"{path} → {name}" for name in above]
    assert violations == []
