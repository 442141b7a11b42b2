"""Static files generated from packages when they are collected, so that the repository has no copy of them."""

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from django.conf import settings
from django.contrib.staticfiles.finders import BaseFinder
from django.core.files.storage import FileSystemStorage


class GeneratedFileFinder(BaseFinder):
    """Offer one generated file to `collectstatic`, and to the servers that serve static files uncollected."""

    path: str  # below STATIC_URL
    version = ""  # changing it regenerates the file; without one, the file is generated each time

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.storage = FileSystemStorage(settings.DATA_DIR / "generated" / self.version)

    def generate(self) -> bytes:
        raise NotImplementedError

    def list(self, ignore_patterns: Iterable[str] | None) -> Iterator[tuple[str, FileSystemStorage]]:
        self.write()
        yield self.path, self.storage

    def find(self, path: str, find_all: bool = False, **kwargs: Any) -> Any:
        if path != self.path:
            return []
        file = str(self.write())
        return [file] if find_all else file

    def write(self) -> Path:
        path = Path(self.storage.path(self.path))
        if self.version and path.exists():
            return path
        content = self.generate()
        if not path.exists() or path.read_bytes() != content:
            path.parent.mkdir(parents=True, exist_ok=True)
            draft = path.with_suffix(f".{os.getpid()}")
            draft.write_bytes(content)
            draft.replace(path)  # atomic: other processes never read half a file
        return path
