"""How gunicorn runs the portal, by `make run` and by deploy/portal-web.service alike. It finds this file by its name."""

import gc
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from django.core.exceptions import ImproperlyConfigured

try:
    from cng_portal import settings
except ImproperlyConfigured as error:  # its sentence names the setting
    sys.exit(str(error))

wsgi_app = "cng_portal.wsgi"
bind = f"[{settings.BIND}]:{settings.PORT}" if ":" in settings.BIND else f"{settings.BIND}:{settings.PORT}"
workers = settings.WEB_WORKERS
threads = settings.WEB_THREADS
# a header SCRIPT_NAME or PATH_INFO would change the address that the proxy has checked
forwarder_headers = ""
control_socket_disable = True  # it would be made in the home folder
logconfig_dict = settings.LOGGING | {
    "loggers": settings.LOGGING["loggers"]
    | {
        "gunicorn.error": {"level": "INFO", "handlers": [], "propagate": True},
        # cng_portal.logs tells of requests, without what follows the question mark
        "gunicorn.access": {"level": "CRITICAL", "handlers": [], "propagate": False},
    }
}

# Each web process keeps its numbers in a file of its own here, and whichever is asked for /metrics adds them up.
METRICS = settings.DATA_DIR / "metrics"
os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(METRICS)


def on_starting(server: Any) -> None:
    shutil.rmtree(METRICS, ignore_errors=True)
    METRICS.mkdir()
    # Loaded once before any worker is: a start that is refused is then one sentence, and not one from each of them.
    refused = subprocess.run([sys.executable, "-c", "import cng_portal.wsgi"]).returncode
    if refused:
        sys.exit(refused)


def post_worker_init(worker: Any) -> None:
    # What was loaded stays, and a page makes thousands of objects of which hardly any is part of a cycle: to look for those
    # after every 700 of them is a tenth of the time.
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000)


def child_exit(server: Any, worker: Any) -> None:
    from prometheus_client.multiprocess import mark_process_dead

    mark_process_dead(worker.pid)
