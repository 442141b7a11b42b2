"""What runs inside the child: parses one disk image in the sandbox of `sandbox.py`.

Imports the standard library and the readers only. `main.py` is its entry, `commands.py` says what it answers.
"""

DAMAGED = 3  # the exit code of a download that the disk's damage ended
VERSION = 1  # of lists of files: raise it when the same bytes are listed otherwise than before
NOT_SANDBOXED = 99  # the exit code of a check that can't be sandboxed; no program uses it
SEPARATOR = b"\0\0"  # of the records of a catalogue
MAX_RECORD = 64_000  # bytes


def clean(name: bytes) -> bytes:
    """Return the name without the characters that separate names and records, which only a forged one has."""
    return name.replace(b"/", b"_").replace(b"\0", b"_")
