"""Horizon, OpenStack's own portal, on the lab's Keystone and Cinder: the peer to compare pages with."""

import re
import sys
from http.cookiejar import CookieJar
from pathlib import Path
from urllib.parse import urlencode
from urllib.request import HTTPCookieProcessor, OpenerDirector, build_opener

from tests.lab.openstack.lab import PASSWORD, Lab, run

HERE = Path(__file__).parent
PAGE = "/project/snapshots/"  # the start page needs Nova
SETTINGS = """
DEBUG = False
SECRET_KEY = "only the lab signs anything with this sentence"
ALLOWED_HOSTS = ["127.0.0.1"]
WEBROOT = "/"
OPENSTACK_HOST = "127.0.0.1"
OPENSTACK_KEYSTONE_URL = "{keystone}"
OPENSTACK_API_VERSIONS = {{"identity": 3, "volume": 3}}
SESSION_ENGINE = "django.contrib.sessions.backends.file"
SESSION_FILE_PATH = "{folder}/sessions"
CACHES = {{"default": {{"BACKEND": "django.core.cache.backends.locmem.LocMemCache"}}}}
STATIC_ROOT = "{folder}/static"
LOCAL_PATH = "{folder}"
COMPRESS_OFFLINE = True
API_RESULT_PAGE_SIZE = 20
LOGGING = {{
    "version": 1,
    "disable_existing_loggers": False,
    "handlers": {{"console": {{"class": "logging.StreamHandler"}}}},
    "root": {{"handlers": ["console"], "level": "WARNING"}},
}}
"""


class Horizon:
    """A gunicorn worker that the lab starts and stops like its other services."""

    def __init__(self, lab: Lab, port: int) -> None:
        self.lab, self.port = lab, port
        self.folder = lab.folder / "horizon"
        self.python = self.folder / "venv" / "bin" / "python"
        self.environment = {"DJANGO_SETTINGS_MODULE": "openstack_dashboard.settings"}
        gunicorn = [self.python.parent / "gunicorn", "--no-control-socket", "--workers", "1", "--threads", "4"]
        bind = ["--bind", f"127.0.0.1:{port}", "openstack_dashboard.wsgi:application"]
        lab.services["horizon"] = ([*gunicorn, *bind], self.environment)

    def start(self) -> None:
        self.install()
        for name in "sessions", "static":
            (self.folder / name).mkdir(exist_ok=True)
        packages = next((self.folder / "venv" / "lib").glob("python3*/site-packages"))
        settings = packages / "openstack_dashboard" / "local" / "local_settings.py"
        settings.write_text(SETTINGS.format(keystone=self.lab.keystone_url, folder=self.folder))
        if not (self.folder / "static" / "made").exists():
            run(self.python, "-m", "django", "collectstatic", "--noinput", env=self.environment)
            run(self.python, "-m", "django", "compress", "--force", env=self.environment)
            (self.folder / "static" / "made").touch()
        self.lab.ports["horizon"] = self.port
        self.lab.start_service("horizon")
        self.lab.wait_for_port("horizon")

    def install(self) -> None:
        requirements, done = HERE / "horizon.txt", self.folder / "installed"
        if done.exists() and done.read_text() == requirements.read_text():
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        run(sys.executable, "-m", "venv", self.folder / "venv")
        pip = [self.python, "-m", "pip", "install", "--quiet", "--no-cache-dir", "--disable-pip-version-check"]
        run(*pip, "--no-input", "--requirement", requirements)
        done.write_text(requirements.read_text())

    def sign_in(self, name: str) -> OpenerDirector:
        opener = build_opener(HTTPCookieProcessor(CookieJar()))
        url = f"http://127.0.0.1:{self.port}/auth/login/"
        page = opener.open(url, timeout=60).read().decode()
        [token] = set(re.findall(r"name=[\"']csrfmiddlewaretoken[\"'] value=[\"']([^\"']+)", page))
        region = re.search(r"name=\"region\"[^>]*value=\"([^\"]*)\"", page)
        form = {"csrfmiddlewaretoken": token, "username": name, "password": PASSWORD, "next": PAGE}
        form |= {"region": region[1] if region else "default"}
        opener.addheaders.append(("Referer", url))
        opener.open(url, urlencode(form).encode(), timeout=60).read()
        return opener
