"""What runs inside the child: parses one disk image behind the fences of `fences.py`.

Imports the standard library and the readers only. `main.py` is its entry, `commands.py` says what it answers.
"""

DAMAGED = 3  # the exit code of a download that the disk's damage ended
