import os
import sys

from django.core.exceptions import ImproperlyConfigured
from django.core.wsgi import get_wsgi_application

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "cng_portal.settings")
application = get_wsgi_application()

from cng_portal.hardening import Request, refuse_unsafe_start  # noqa: E402  # needs the apps

application.request_class = Request
try:
    refuse_unsafe_start()
except ImproperlyConfigured as error:
    print(error, file=sys.stderr)
    sys.exit(4)  # gunicorn restarts workers that exit with any status other than 3 or 4
