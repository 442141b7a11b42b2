"""The Debian packages that the browser tests need."""

import ctypes.util
import shutil
import sys

PROGRAM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def missing_packages() -> list[str]:
    missing = [] if PROGRAM else ["chromium"]
    if sys.platform == "linux" and not ctypes.util.find_library("atomic"):
        missing.append("libatomic1")  # Playwright's own driver is linked with it
    return missing
