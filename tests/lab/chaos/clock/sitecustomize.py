"""Makes a Python process with this folder in PYTHONPATH follow the clock in the file CHAOS_CLOCK.

The file holds the offset in seconds. Only the wall clock jumps, not time.monotonic(), as on a machine whose clock is set.
(libfaketime would work for every program, but breaks time.sleep() of Python 3.11.)
"""

import os
import sys
import threading
import time
from pathlib import Path

sys.modules["pytest"] = None  # type: ignore[assignment]  # it would be imported, and the settings take it for a test
import time_machine  # noqa: E402

del sys.modules["pytest"]

CLOCK = Path(os.environ["CHAOS_CLOCK"])
clock = time_machine.travel(time.time(), tick=True).start()
real_time = time_machine.escape_hatch.time.time  # only now can it be imported


def follow() -> None:
    offset = "0"
    pause = threading.Event()
    while True:
        wanted = CLOCK.read_text()
        if wanted != offset:
            clock.move_to(real_time() + float(wanted), tick=True)
            offset = wanted
        pause.wait(0.2)


def start() -> None:
    threading.Thread(target=follow, name="clock", daemon=True).start()


start()
os.register_at_fork(after_in_child=start)
