"""gunicorn's configuration, for `make run` and portal-web.service. gunicorn finds it by its name."""

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
except ImproperlyConfigured as error:  # Its message names the setting.
    sys.exit(str(error))

wsgi_app = "cng_portal.wsgi"
bind = f"[{settings.BIND}]:{settings.PORT}" if ":" in settings.BIND else f"{settings.BIND}:{settings.PORT}"
workers = settings.WEB_WORKERS
threads = settings.WEB_THREADS
# Longer than nginx keeps idle connections: otherwise nginx may use one that is being closed, and respond with 502. Idle
# connections occupy no thread.
keepalive = 75
graceful_timeout = 30
# Headers SCRIPT_NAME or PATH_INFO would change the path that the proxy has checked.
forwarder_headers = ""
control_socket_disable = True  # It would be created in the home folder.
logconfig_dict = settings.LOGGING | {
    "loggers": settings.LOGGING["loggers"]
    | {
        "gunicorn.error": {"level": "INFO", "handlers": [], "propagate": True},
        # cng_portal.logs logs requests, without query strings.
        "gunicorn.access": {"level": "CRITICAL", "handlers": [], "propagate": False},
    }
}

# Each web process writes its request times to its own files here; the one that serves /metrics adds them up.
# systemd's RuntimeDirectory is in memory, independent of a full disk.
METRICS = Path(os.environ.get("RUNTIME_DIRECTORY") or settings.DATA_DIR) / "metrics"
os.environ["METRICS_DIR"] = str(METRICS)
# The files are memory-mapped: growing one on a full disk kills the process. So each process preallocates what all views,
# methods and statuses can need: see tests/test_metrics.py.
METRICS_BYTES = {"histogram": 16 * 2**20, "counter": 2**16}


def on_starting(server: Any) -> None:
    shutil.rmtree(METRICS, ignore_errors=True)
    try:
        METRICS.mkdir()
    except OSError as error:
        server.log.warning("Request times are not measured: %s", error)
    # Imported before the workers start, so that a refused start prints one message instead of one per worker.
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
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(METRICS)  # Read when prometheus_client is imported.


def post_worker_init(worker: Any) -> None:
    # Loaded modules stay, and a page creates thousands of objects with hardly a cycle: collecting after every 700 takes a
    # tenth of the time.
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000)


def child_exit(server: Any, worker: Any) -> None:
    # Keep its measurements, and release the preallocated rest.
    for path in METRICS.glob(f"*_{worker.pid}.db"):
        with open(path, "r+b") as file:
            file.truncate(int.from_bytes(file.read(4), sys.byteorder))
