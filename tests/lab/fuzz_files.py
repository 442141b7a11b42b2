"""Damage the metadata of disk images and read them as the file pages do: `python -m tests.lab.fuzz_files [COUNT]`.

Each damaged image is listed, searched, downloaded as an archive and as a file, and catalogued, and its files are sampled and
hashed, each in its own child. The run fails if the parent raises anything but errors for customers, if a request takes 15
seconds, or if a child survives.
"""

import os
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import django
import psutil

BLOCK = 4096
LIMIT_SECONDS = 15
COMMANDS = (
    {"command": "parts"},
    {"command": "folder", "order": "name", "start": 0, "count": 100},
    {"command": "search", "text": "cmFuZG9t", "count": 200},
    {"command": "archive"},
    {"command": "file", "path": ["cmFuZG9tLmJpbg=="]},
    {"command": "catalogue"},
    {"command": "sample", "files": [[0, inode, 4096] for inode in range(64)]},
    {"command": "hash", "files": [[0, inode, 2**40] for inode in (12, 13, 64, 131)], "seconds": 3},
)
DOWNLOADS = ("archive", "file", "catalogue")


def main() -> int:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 300
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "cng_portal.settings")
    os.environ["ENV_FILE"], os.environ["LOG_LEVEL"] = os.devnull, "CRITICAL"
    with tempfile.TemporaryDirectory(prefix="portal-fuzz-") as name:
        os.environ["DATA_DIR"] = name
        django.setup()
        from tests.snapshots.files.images import MAKERS, make_tree

        folder = Path(name)
        (folder / "tree").mkdir()
        tree = make_tree(folder / "tree")
        outcomes: Counter[str] = Counter()
        slowest, wrong = 0.0, []
        for number, kind in enumerate(MAKERS):
            image = MAKERS[kind](folder / kind, tree)
            metadata = find_metadata(image)
            for run in range(number, count, len(MAKERS)):
                undo = damage(image, metadata, random.Random(run))
                for request in COMMANDS:
                    began = time.monotonic()
                    outcome = read(image, request)
                    seconds = time.monotonic() - began
                    slowest = max(slowest, seconds)
                    outcomes[outcome] += 1
                    if outcome.startswith("raised") or seconds > LIMIT_SECONDS:
                        wrong.append(f"{kind}, run {run}, {request['command']}: {outcome} after {seconds:.1f} s")
                undo()
            print(f"{kind}: {dict(outcomes)}, slowest {slowest:.1f} s", flush=True)
    left = [child.pid for child in psutil.Process().children(recursive=True)]
    print(*wrong, sep="\n")
    print(f"{count} images, {sum(outcomes.values())} requests: {len(wrong)} wrong, {len(left)} children left.")
    return 1 if wrong or left else 0


def find_metadata(image: Path) -> list[int]:
    """Return the offsets of blocks with metadata instead of the tree's random content, mostly in the first megabytes."""
    with open(image, "rb") as file:
        matches, at = [], 0
        while block := file.read(BLOCK):
            if block.strip(b"\0") and len(set(block)) < 200:
                matches.append(at)
            at += BLOCK
    return matches


def damage(image: Path, metadata: list[int], chance: random.Random) -> Callable[[], None]:
    """Flip, set or clear bytes, or truncate. Returns a function that repairs it."""
    size = image.stat().st_size
    before: dict[int, bytes] = {}
    with open(image, "r+b") as file:
        if not chance.randrange(8):
            cut = chance.randrange(BLOCK, size)
            file.seek(cut)
            end = file.read()
            file.truncate(cut)

            def undo() -> None:
                with open(image, "r+b") as file:
                    file.seek(cut)
                    file.write(end)

            return undo
        for _number in range(chance.choice([1, 4, 16, 64, 256])):
            at = chance.choice(metadata) + chance.randrange(BLOCK)
            file.seek(at)
            old = file.read(1)
            before.setdefault(at, old)
            file.seek(at)
            file.write(bytes([chance.choice([old[0] ^ (1 << chance.randrange(8)), 0xFF, 0, chance.randrange(256)])]))

    def undo() -> None:
        with open(image, "r+b") as file:
            for at, old in before.items():
                file.seek(at)
                file.write(old)

    return undo


def read(image: Path, request: dict[str, object]) -> str:
    """Return "answered", the reason of a failure, or "raised …"."""
    from snapshots.files import children, services

    file = os.open(image, os.O_RDONLY)
    request = {"part": 0, "path": [], "id": None} | request
    try:
        if request["command"] in DOWNLOADS:
            download = children.Download(file, request)
            try:
                for _chunk in download:
                    pass
            finally:
                download.close()
        else:
            children.ask(file, request)
        return "answered"
    except children.ReaderFailed as error:
        return error.reason if error.reason in services.REASONS else f"raised {error}"
    except Exception as error:
        return f"raised {error!r}"
    finally:
        os.close(file)


if __name__ == "__main__":
    sys.exit(main())
