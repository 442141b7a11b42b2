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
# Longer than nginx keeps its idle connections: else nginx may send a request on one that is just being closed, and answers
# with 502. A connection that is idle occupies no thread.
keepalive = 75
graceful_timeout = 30
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

# Each web process writes its request times to files of its own here, and whichever is asked for /metrics adds them up.
# systemd's RuntimeDirectory is in memory, where a full disk does not matter.
METRICS = Path(os.environ.get("RUNTIME_DIRECTORY") or settings.DATA_DIR) / "metrics"
os.environ["METRICS_DIR"] = str(METRICS)
# The files are mapped into memory, and writing to a part that the disk has no room for kills the process. So each worker
# reserves as much as all views, methods and statuses can need before it starts; see tests/test_metrics.py.
METRICS_BYTES = {"histogram": 16 * 2**20, "counter": 2**16}


def on_starting(server: Any) -> None:
    shutil.rmtree(METRICS, ignore_errors=True)
    try:
        METRICS.mkdir()
    except OSError as error:
        server.log.warning("Request times are not measured: %s", error)
    # Loaded once before any worker is: a start that is refused is then one sentence, and not one from each of them.
    refused = subprocess.run([sys.executable, "-c", "import cng_portal.wsgi"]).returncode
    if refused:
        sys.exit(refused)


def post_fork(server: Any, worker: Any) -> None:
    try:
        for kind, size in METRICS_BYTES.items():
            with open(METRICS / f"{kind}_{worker.pid}.db", "ab") as file:
                os.posix_fallocate(file.fileno(), 0, size)
    except OSError as error:
        os.environ.pop("PROMETHEUS_MULTIPROC_DIR", None)
        server.log.warning("The request times of this worker are not measured: %s", error)
    else:
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(METRICS)  # prometheus_client reads it when the worker imports it


def post_worker_init(worker: Any) -> None:
    # What was loaded stays, and a page makes thousands of objects of which hardly any is part of a cycle: to look for those
    # after every 700 of them is a tenth of the time.
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000)


def child_exit(server: Any, worker: Any) -> None:
    # What it measured still counts; the rest of what it reserved is given back.
    for path in METRICS.glob(f"*_{worker.pid}.db"):
        with open(path, "r+b") as file:
            file.truncate(int.from_bytes(file.read(4), sys.byteorder))
