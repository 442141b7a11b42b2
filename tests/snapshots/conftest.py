"""File systems for the local driver, and a check of the lock order."""

import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from django.db import connection, transaction

WRITE = re.compile(r'\s*(?:UPDATE|DELETE FROM)\s+"?(\w+)"?')


@pytest.fixture
def lock_order() -> Iterator[None]:
    """Fail the test if a transaction locks its customer after writing to another row. See `lock_customer`.

    Sees this process's main connection, and transactions only: the test needs `django_db(transaction=True)`.
    """
    written: list[str] = []
    wrong: list[str] = []

    def watch(execute: Callable[..., Any], sql: str, params: Any, many: bool, context: dict[str, Any]) -> Any:
        if not connection.in_atomic_block:
            written.clear()
        elif match := WRITE.match(sql):
            if not written:
                transaction.on_commit(written.clear)
            if "locked_at" in sql and match[1] == "accounts_customer" and written[:1] not in ([], [match[1]]):
                wrong.append(f"{', '.join(written)}, then the customer")
            written.append(match[1])
        return execute(sql, params, many, context)

    with connection.execute_wrapper(watch):
        yield
    assert not wrong


def mount_loop(folder: Path, size: int, *make: str) -> Iterator[Path]:
    """Mount a new file system in a file of `size` bytes, or skip the test if that isn't permitted."""
    tool = make[0]
    if os.geteuid() != 0 or not shutil.which(tool):
        pytest.skip(f"needs root and {tool} for a loop-mounted file system")
    image, target = folder / "fs.img", folder / "mounted"
    target.mkdir()
    with open(image, "wb") as file:
        file.truncate(size)
    subprocess.run([*make, str(image)], check=True, capture_output=True)
    mounted = subprocess.run(["mount", "-o", "loop", str(image), str(target)], capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"cannot mount a loop device here: {mounted.stderr.strip()}")
    try:
        yield target
    finally:
        subprocess.run(["umount", str(target)], check=True)
        image.unlink()


@pytest.fixture(scope="session")
def xfs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A file system that shares blocks between files."""
    yield from mount_loop(tmp_path_factory.mktemp("xfs"), 2 * 1024**3, "mkfs.xfs", "-q", "-m", "reflink=1")


@pytest.fixture
def small_file_system(tmp_path: Path) -> Iterator[Path]:
    """64 MiB that cannot share blocks."""
    yield from mount_loop(tmp_path, 64 * 1024**2, "mkfs.ext4", "-q", "-m", "0")


@pytest.fixture
def default_root(tmp_path: Path) -> Path:
    return tmp_path / "driver"


@pytest.fixture
def cloning_root(xfs: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    root = xfs / str(abs(hash(request.node.nodeid)))
    yield root
    shutil.rmtree(root, ignore_errors=True)
