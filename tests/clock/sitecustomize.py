"""Let Python sleep under Debian's faketime. Python imports this at its start if this folder is in PYTHONPATH.

`faketime --exclude-monotonic` breaks clock_nanosleep, and with it time.sleep of Python 3.11 (wolfcw/libfaketime#426).
"""

import threading
import time


def sleep(seconds: float) -> None:
    threading.Event().wait(seconds)


time.sleep = sleep
