"""Settings come from the environment or from `.env`; `.env.example` explains each one.

An invalid value stops the start with one sentence that names the setting. `read` casts values itself: django-environ's casts
take any text for a boolean and keep blanks in lists, and its `env()` expands values that begin with `$`, as a secret may.
"""

import ipaddress
import json
import logging
import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import environ
from csp.constants import NONE, SELF
from django.core.exceptions import ImproperlyConfigured
from django.core.management.utils import get_random_secret_key
from django.urls import reverse_lazy
from whitenoise.compress import Compressor

from cng_portal import hardening, logs

BASE_DIR = Path(__file__).resolve().parent.parent
TESTING = "pytest" in sys.modules
Value = TypeVar("Value")

env = environ.Env()
env.read_env(os.environ.get("ENV_FILE") or BASE_DIR / ".env")


def read(name: str, cast: Callable[[str], Value], default: Value, *, secret: bool = False) -> Value:
    """Return the setting, or `default` if it is missing or empty. `cast` raises ValueError with the reason.

    The message doesn't repeat the value of a `secret`.
    """
    text = os.environ.get(name, "").strip()
    if not text:
        return default
    try:
        return cast(text)
    except ValueError as error:
        setting = name if secret else f"{name}={text}"
        raise ImproperlyConfigured(f"{setting} cannot be used: {error}") from None


def yes_or_no(text: str) -> bool:
    if text.lower() not in ("true", "yes", "on", "1", "false", "no", "off", "0"):
        raise ValueError("it must be true or false.")
    return text.lower() in ("true", "yes", "on", "1")


def whole_number(minimum: int, maximum: int) -> Callable[[str], int]:
    def cast(text: str) -> int:
        if not text.isdecimal() or not minimum <= int(text) <= maximum:
            raise ValueError(f"it must be a whole number from {minimum} to {maximum}.")
        return int(text)

    return cast


def days_kept(text: str) -> int:
    days = whole_number(0, 36_500)(text)
    if 0 < days < 365:
        raise ValueError("the database keeps entries for at least 365 days; 0 keeps them forever.")
    return days


def words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def one_of(*choices: str) -> Callable[[str], str]:
    def cast(text: str) -> str:
        for choice in choices:
            if text.lower() == choice.lower():
                return choice
        raise ValueError(f"it must be one of {', '.join(choices)}.")

    return cast


def address(text: str) -> str:
    try:
        return str(ipaddress.ip_address(text))
    except ValueError:
        raise ValueError("it is not an IP address, such as 127.0.0.1 or 0.0.0.0.") from None


def site(text: str) -> str:
    parts = urlsplit(text)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.path not in ("", "/") or parts.query:
        raise ValueError("it is not an address such as https://portal.example.com.")
    return text.rstrip("/")


def secret_token(text: str) -> str:
    if len(text) < 16:
        raise ValueError("it is shorter than 16 characters.")
    return text


def long_secret(text: str) -> str:
    if len(text) < 32:
        raise ValueError("it is shorter than 32 characters; leave it out to have one generated.")
    return text


def long_secrets(text: str) -> list[str]:
    return [long_secret(word) for word in words(text)]


def folder(text: str) -> Path:
    """Create the folder if necessary. A relative path starts at the project's folder."""
    path = (BASE_DIR / text).absolute()
    try:
        path.mkdir(mode=0o750, parents=True, exist_ok=True)  # not for other users of the machine
    except OSError as error:
        raise ValueError(f"the folder cannot be created ({error.strerror}).") from None
    if not os.access(path, os.W_OK | os.X_OK):
        raise ValueError("the folder cannot be written to.")
    return path


def range_service(text: str) -> str:
    """The URL of a service with Have I Been Pwned's range API, with a slash at the end."""
    parts = urlsplit(text)
    if parts.scheme != "https" or not parts.hostname or {"?", "#", "@"} & set(text):
        raise ValueError("it is not an address such as https://api.pwnedpasswords.com/range/.")
    return text.rstrip("/") + "/"


def database(text: str) -> dict[str, Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # unknown schemes are refused below
        try:
            config = env.db_url_config(text)
        except ValueError:
            config = {}
    engine = config.get("ENGINE", "").rpartition(".")[2]
    if engine not in ("sqlite3", "postgresql") or config["NAME"] in ("", ":memory:"):
        raise ValueError("give sqlite:////path/to/file or postgres://user:password@host:5432/name.")
    return config


def email(text: str) -> dict[str, Any]:
    try:
        return env.email_url_config(text)
    except (ValueError, ImproperlyConfigured):  # whose messages repeat the value
        raise ValueError("give smtp+tls://user:password@host:587 or consolemail://.") from None


def storage(text: str) -> dict[str, dict[str, Any]]:
    try:
        engines = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"it is not JSON ({error}).") from None
    shape = '{"alias": {"driver": "dotted.path", "options": {…}}}'
    if not isinstance(engines, dict) or not engines:
        raise ValueError(f"it has to look like {shape}.")
    for alias, engine in engines.items():
        if (
            not isinstance(engine, dict)
            or not isinstance(engine.get("driver"), str)
            or not isinstance(engine.setdefault("options", {}), dict)
            or engine.keys() != {"driver", "options"}
        ):
            raise ValueError(f"the engine “{alias}” has to look like {shape}.")
    return engines


DEBUG = read("DEBUG", yes_or_no, False)
# Where the web process listens, in `manage.py serve` and deploy/.
BIND = read("BIND", address, "127.0.0.1")
hardening.refuse_exposed_bind(BIND, allowed=read("BIND_EXPOSED", yes_or_no, False))
PORT = read("PORT", whole_number(1, 65535), 8000)
WEB_WORKERS = read("WEB_WORKERS", whole_number(1, 1000), 2)
WEB_THREADS = read("WEB_THREADS", whole_number(1, 1000), 4)
DATA_DIR = read("DATA_DIR", folder, None) or folder("var")


def generated_secret() -> str:
    """Generate a secret once and keep it in the data folder, so that sessions survive a restart."""
    path = DATA_DIR / "secret_key"
    if not path.exists():
        draft = DATA_DIR / f"secret_key.{os.getpid()}"
        draft.touch(mode=0o600)
        draft.write_text(get_random_secret_key())
        try:
            os.link(draft, path)  # atomic: the first of several processes wins
        except FileExistsError:
            pass
        finally:
            draft.unlink()
    return path.read_text()


SECRET_KEY = read("SECRET_KEY", long_secret, "", secret=True) or generated_secret()
# Earlier secrets, which still verify and decrypt while SECRET_KEY is rotated.
SECRET_KEY_FALLBACKS: list[str] = read("SECRET_KEY_FALLBACKS", long_secrets, [], secret=True)
ALLOWED_HOSTS = read("ALLOWED_HOSTS", words, ["localhost", "127.0.0.1", "[::1]"])
CSRF_TRUSTED_ORIGINS: list[str] = read("CSRF_TRUSTED_ORIGINS", words, [])
HTTPS = read("HTTPS", yes_or_no, False)
# Reachable by others, so it refuses to start with unsafe settings: see cng_portal/hardening.py.
PRODUCTION = not TESTING and hardening.is_production(https=HTTPS, allowed_hosts=ALLOWED_HOSTS)

INSTALLED_APPS = [
    "cng_portal.support",
    "cng_portal.mail",
    "cng_portal.activity",
    "cng_portal.accounts",
    "cng_portal.notifications",
    "cng_portal.inventory",
    "cng_portal.monitoring",
    "billing",
    "snapshots",
    "allauth",
    "allauth.account",
    "allauth.mfa",
    "allauth.usersessions",
    "django_htmx",
    "django_include_bootstrap",
    "template_partials",
    "django_tasks",
    "django_tasks_db",
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "whitenoise.runserver_nostatic",
    "django.contrib.staticfiles",
    "django.contrib.humanize",
]
MIDDLEWARE = [
    # Outermost, so that files, probes and redirects have these headers too.
    "cng_portal.hardening.headers",
    "csp.middleware.CSPMiddleware",
    "cng_portal.monitoring.health.probes",
    "django.middleware.security.SecurityMiddleware",
    "whitenoise.middleware.WhiteNoiseMiddleware",
    # Safe against BREACH: Django masks each token and adds random bytes (https://docs.djangoproject.com/en/5.2/ref/middleware/#module-django.middleware.gzip).
    "django.middleware.gzip.GZipMiddleware",
    "cng_portal.monitoring.metrics.measure",
    "cng_portal.logs.RequestMiddleware",
    "cng_portal.maintenance.maintenance",
    "cng_portal.hardening.ignore_unusable_cookies",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.locale.LocaleMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django_htmx.middleware.HtmxMiddleware",
    "cng_portal.accounts.middleware.htmx_redirects_to_sign_in",
    "django.contrib.auth.middleware.LoginRequiredMiddleware",
    "cng_portal.accounts.middleware.request_origin",
    "cng_portal.accounts.middleware.enforce_session_limits",
    "cng_portal.accounts.middleware.impersonate",
    "cng_portal.accounts.middleware.apply_preferences",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
    "allauth.account.middleware.AccountMiddleware",
    "cng_portal.accounts.middleware.require_factor",
    "cng_portal.accounts.middleware.protect_admin",
]
ROOT_URLCONF = "cng_portal.urls"
WSGI_APPLICATION = "cng_portal.wsgi.application"
TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "DIRS": [BASE_DIR / "templates"],
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
                "snapshots.context.frame",
                "cng_portal.notifications.context.bell",
                "billing.context.wallet",
            ],
            "builtins": [
                "template_partials.templatetags.partials",
                "cng_portal.common.templatetags.portal",
                "cng_portal.support.templatetags.support",
            ],
        },
    }
]
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"

# Seconds to wait for SQLite's lock, and for a PostgreSQL connection. Shorter than the proxy's timeout.
SQLITE_TIMEOUT, DATABASE_TIMEOUT = 20, 10
default_database: dict[str, Any] = read("DATABASE_URL", database, {}, secret=True)
if not default_database:
    default_database = {"ENGINE": "django.db.backends.sqlite3", "NAME": str(DATA_DIR / "portal.sqlite3")}
if default_database["ENGINE"] == "django.db.backends.sqlite3":
    # Writers wait instead of failing: WAL doesn't block readers, and IMMEDIATE takes the write lock first.
    default_database["OPTIONS"] = {
        "transaction_mode": "IMMEDIATE",
        "timeout": SQLITE_TIMEOUT,
        "init_command": "PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL; PRAGMA foreign_keys=ON; "
        # Otherwise INSERT OR REPLACE bypasses the triggers that prevent deletions.
        "PRAGMA recursive_triggers=ON;",
    }
    # Opening the file takes as long as a request's queries, and an open file keeps the shared-memory files, for which a
    # full disk has no room. Tests close their connections.
    default_database["CONN_MAX_AGE"] = 0 if TESTING else None
    # A file, because tests share it with child processes and threads.
    default_database["TEST"] = {"NAME": str(DATA_DIR / "test.sqlite3")}
else:
    pool = {"min_size": 1, "max_size": read("DATABASE_POOL", whole_number(1, 1000), 8), "timeout": DATABASE_TIMEOUT}
    default_database["OPTIONS"] = {"pool": pool} | default_database.get("OPTIONS", {})
    default_database["CONN_HEALTH_CHECKS"] = True  # replaces dead connections of the pool
DATABASES = {"default": default_database}
CACHES = {
    "default": {
        "BACKEND": "django.core.cache.backends.db.DatabaseCache",
        "LOCATION": "cache",
        # A full cache drops live rows: with Django's default of 300, an attacker could evict the counters of failed attempts
        # and the used codes. The scheduler deletes expired rows every hour.
        "OPTIONS": {"MAX_ENTRIES": 1_000_000},
    },  # shared by all processes
    "process": {"BACKEND": "django.core.cache.backends.locmem.LocMemCache"},
}
TASKS = {"default": {"BACKEND": "django_tasks_db.DatabaseBackend"}}

# Storage engines by alias; each location uses one. The local engine's files are in DATA_DIR/storage.
STORAGE: dict[str, dict[str, Any]] = read("STORAGE", storage, {}) or {
    "local": {"driver": "snapshots.storage.local.LocalDriver", "options": {"root": str(DATA_DIR / "storage")}}
}
# After this long without a heartbeat, another worker takes over an operation.
OPERATION_LEASE_SECONDS = read("OPERATION_LEASE_SECONDS", whole_number(1, 3600), 30)
OPERATION_MAX_ATTEMPTS = read("OPERATION_MAX_ATTEMPTS", whole_number(1, 100), 3)
OPERATION_DEADLINE_HOURS = read("OPERATION_DEADLINE_HOURS", whole_number(1, 1000), 24)
# Every readable snapshot is verified at least once within this many days.
SCRUB_DAYS = read("SCRUB_DAYS", whole_number(1, 3650), 30)
# Days in the recycle bin, unless the customer has a number of their own. 0 turns it off.
RECYCLE_BIN_DAYS = read("RECYCLE_BIN_DAYS", whole_number(0, 365), 7)
# The oldest in the recycle bin are erased early while a location has less free space. 0: never.
RECYCLE_BIN_FREE_GB = read("RECYCLE_BIN_FREE_GB", whole_number(0, 1_000_000), 10)
# The largest volume that can be created.
MAX_VOLUME_GB = read("MAX_VOLUME_GB", whole_number(1, 1_000_000), 16_000)
# Requests per customer and hour; 0 means unlimited.
ACTIONS_PER_HOUR = {
    "capture": read("SNAPSHOTS_PER_HOUR", whole_number(0, 1_000_000), 500),
    "restore": read("RESTORES_PER_HOUR", whole_number(0, 1_000_000), 100),
    "new_volume": read("NEW_VOLUMES_PER_HOUR", whole_number(0, 1_000_000), 200),
    "verify": read("VERIFICATIONS_PER_HOUR", whole_number(0, 1_000_000), 200),
    "drill": read("DRILLS_PER_HOUR", whole_number(0, 1_000_000), 50),
    "create_volume": read("NEW_VOLUMES_PER_HOUR", whole_number(0, 1_000_000), 200),
    "extend_volume": read("VOLUME_EXTENSIONS_PER_HOUR", whole_number(0, 1_000_000), 200),
}
INVITATIONS_PER_HOUR = read("INVITATIONS_PER_HOUR", whole_number(0, 1_000_000), 50)
# After this long without a heartbeat, another scheduler takes over.
SCHEDULER_LEASE_SECONDS = read("SCHEDULER_LEASE_SECONDS", whole_number(5, 3600), 30)

AUTH_USER_MODEL = "accounts.User"
AUTHENTICATION_BACKENDS = ["cng_portal.accounts.signin.backends.AuthenticationBackend"]
AUTH_PASSWORD_VALIDATORS: list[dict[str, Any]] = [
    {"NAME": f"django.contrib.auth.password_validation.{name}"}
    for name in ("UserAttributeSimilarityValidator", "MinimumLengthValidator", "CommonPasswordValidator")
]
# Unlike other settings, empty differs from missing: it turns the check off.
HAVE_I_BEEN_PWNED = "https://api.pwnedpasswords.com/range/"
default_service = HAVE_I_BEEN_PWNED if HTTPS and "BREACHED_PASSWORDS" not in os.environ else ""
BREACHED_PASSWORDS = read("BREACHED_PASSWORDS", range_service, default_service)
if BREACHED_PASSWORDS:
    AUTH_PASSWORD_VALIDATORS.append(
        {
            "NAME": "cng_portal.accounts.signin.passwords.BreachedPasswordValidator",
            "OPTIONS": {"address": BREACHED_PASSWORDS},
        }
    )
PWNED_PASSWORDS = {"API_TIMEOUT": 2}  # seconds, after which the password is accepted
LOGIN_URL = reverse_lazy("account_login")
LOGIN_REDIRECT_URL = reverse_lazy("dashboard")
ACCOUNT_ADAPTER = "cng_portal.accounts.signin.adapter.AccountAdapter"
ACCOUNT_USER_MODEL_USERNAME_FIELD = None
ACCOUNT_LOGIN_METHODS = {"email"}
ACCOUNT_SIGNUP_FIELDS = ["email*", "password1*", "password2*"]
ACCOUNT_EMAIL_VERIFICATION = "none"
ACCOUNT_SESSION_REMEMBER = True
# Idle sessions end after this long; 0 means the two weeks of the cookie.
SESSION_IDLE_HOURS = read("SESSION_IDLE_HOURS", whole_number(0, 336), 12)
# Sessions end after this long even when used.
SESSION_LONGEST_HOURS = read("SESSION_LONGEST_HOURS", whole_number(1, 8784), 336)
ACCOUNT_LOGOUT_REDIRECT_URL = reverse_lazy("account_login")
# Limits by IP address and by the account tried, counted in the shared cache.
ACCOUNT_RATE_LIMITS = {
    "login": "30/m/ip",
    "login_failed": "10/m/ip,5/5m/key",
    "reset_password": "20/m/ip,5/h/key",
    "reset_password_from_key": "20/m/ip",
    "reauthenticate": "10/m/user",
    "change_password": "5/m/user",
    "manage_email": "10/h/user",
    "confirm_email": "1/3m/key",
}
PASSWORD_RESET_TIMEOUT = 3600  # seconds for which the link works
ACCOUNT_FORMS = {
    "add_email": "cng_portal.accounts.forms.NewEmailForm",
    "change_password": "cng_portal.accounts.forms.NewPasswordForm",
}
ACCOUNT_CHANGE_EMAIL = True  # a new address replaces the old one once it is confirmed
ACCOUNT_REAUTHENTICATION_REQUIRED = True  # before changes of the e-mail address or second factors
ACCOUNT_REAUTHENTICATION_TIMEOUT = 15 * 60
ACCOUNT_DEFAULT_HTTP_PROTOCOL = "https" if HTTPS else "http"
ACCOUNT_EMAIL_SUBJECT_PREFIX = "1CNG: "
MFA_ADAPTER = "cng_portal.accounts.signin.factors.MFAAdapter"
MFA_SUPPORTED_TYPES = ["totp", "webauthn", "recovery_codes"]
MFA_PASSKEY_LOGIN_ENABLED = True
MFA_TOTP_ISSUER = "1CNG"
MFA_TOTP_TOLERANCE = 1  # a phone's clock may be 30 seconds off
MFA_ALLOW_UNVERIFIED_EMAIL = True  # addresses come from administrators and invitations
MFA_FORMS = {
    "activate_totp": "cng_portal.accounts.forms.ActivateAppForm",
    "authenticate": "cng_portal.accounts.forms.CodeForm",
    "reauthenticate": "cng_portal.accounts.forms.CodeConfirmationForm",
    "add_webauthn": "cng_portal.accounts.forms.AddPasskeyForm",
    "authenticate_webauthn": "cng_portal.accounts.forms.PasskeyForm",
    "login_webauthn": "cng_portal.accounts.forms.PasskeySignInForm",
    "reauthenticate_webauthn": "cng_portal.accounts.forms.PasskeyConfirmationForm",
}
MFA_WEBAUTHN_ALLOW_INSECURE_ORIGIN = not HTTPS  # browsers allow it for localhost alone
# Trusted proxies in X-Forwarded-For: one by default with HTTPS, which only a proxy can terminate.
ALLAUTH_TRUSTED_PROXY_COUNT = read("TRUSTED_PROXIES", whole_number(0, 10), 1 if HTTPS else 0)
ADMIN_MFA_REQUIRED = read("ADMIN_MFA_REQUIRED", yes_or_no, HTTPS)
# Users who need a second factor.
MFA_REQUIRED = read("MFA_REQUIRED", one_of("nobody", "owners", "everyone"), "everyone" if HTTPS else "nobody")
if os.environ.get("OWNER_MFA_REQUIRED", "").strip():
    raise ImproperlyConfigured(
        "OWNER_MFA_REQUIRED was removed. Set MFA_REQUIRED to nobody, owners or everyone instead."
    )
# Entries of the activity log are deleted after this many days; 0 keeps them forever.
ACTIVITY_KEPT_DAYS = read("ACTIVITY_KEPT_DAYS", days_kept, 0)
EMAIL_CONFIG: dict[str, Any] = read("EMAIL_URL", email, {}, secret=True) or email("consolemail://")
vars().update(EMAIL_CONFIG)
# Recipients of e-mails about problems that need an operator.
administrators: list[str] = read("ADMINS", words, [])
ADMINS = [(email_address, email_address) for email_address in administrators]
EMAIL_TIMEOUT = 10  # seconds per SMTP command; an unresponsive server must not block the scheduler
DEFAULT_FROM_EMAIL = read("DEFAULT_FROM_EMAIL", str, "portal@localhost")
# Links in e-mails start with it, whatever the request's Host header says.
PORTAL_URL = read("PORTAL_URL", site, f"https://{ALLOWED_HOSTS[0]}" if HTTPS else f"http://localhost:{PORT}")

LANGUAGE_CODE = "en"
FORMAT_MODULE_PATH = "cng_portal.formats"
# A language is added here once a native speaker has read its translation: see docs/contributing.md.
LANGUAGES = [("en", "English")]
LOCALE_PATHS = [BASE_DIR / "cng_portal" / "locale"]
USE_TZ = True
TIME_ZONE = "UTC"

STATIC_URL = "static/"
STATIC_ROOT = DATA_DIR / "static"
STATICFILES_DIRS = [BASE_DIR / "static"]
STATICFILES_FINDERS = [
    "django.contrib.staticfiles.finders.FileSystemFinder",
    "django.contrib.staticfiles.finders.AppDirectoriesFinder",
    "cng_portal.common.icons.SpriteFinder",
    "cng_portal.common.fonts.TypefaceFinder",
]
STORAGES = {
    "default": {"BACKEND": "django.core.files.storage.FileSystemStorage"},
    "staticfiles": {"BACKEND": "whitenoise.storage.CompressedManifestStaticFilesStorage"},
}
WHITENOISE_KEEP_ONLY_HASHED_FILES = True
WHITENOISE_MIMETYPES = {".svg": "image/svg+xml; charset=utf-8"}
WHITENOISE_SKIP_COMPRESS_EXTENSIONS = [*Compressor.SKIP_COMPRESS_EXTENSIONS, "map"]
if TESTING or DEBUG:  # live_server doesn't serve manifest-hashed files
    STORAGES["staticfiles"]["BACKEND"] = "django.contrib.staticfiles.storage.StaticFilesStorage"
if TESTING:
    PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]

CONTENT_SECURITY_POLICY = {
    "DIRECTIVES": {
        "default-src": [SELF],
        "img-src": [SELF, "data:"],  # Bootstrap's style sheet has data: images
        "object-src": [NONE],
        "base-uri": [NONE],
        "frame-ancestors": [NONE],
        "form-action": [SELF],
    }
}
WHITENOISE_ALLOW_ALL_ORIGINS = False
X_FRAME_OPTIONS = "DENY"
SECURE_REFERRER_POLICY = "same-origin"
SESSION_COOKIE_SECURE = CSRF_COOKIE_SECURE = SECURE_SSL_REDIRECT = HTTPS
SECURE_HSTS_SECONDS = 31_536_000 if HTTPS else 0
SECURE_HSTS_INCLUDE_SUBDOMAINS = SECURE_HSTS_PRELOAD = HTTPS
CSRF_COOKIE_HTTPONLY = True  # forms contain the token
# Browsers accept cookies with this prefix only over HTTPS and only from this host.
COOKIE_PREFIX = "__Host-" if HTTPS else ""
SESSION_COOKIE_NAME, CSRF_COOKIE_NAME = f"{COOKIE_PREFIX}sessionid", f"{COOKIE_PREFIX}csrftoken"
MESSAGE_STORAGE = "cng_portal.common.cookies.MessageStorage"
if HTTPS:
    SECURE_PROXY_SSL_HEADER = ("HTTP_X_FORWARDED_PROTO", "https")

if PRODUCTION:
    hardening.refuse_unsafe_settings(
        debug=DEBUG,
        https=HTTPS,
        allowed_hosts=ALLOWED_HOSTS,
        secret_key=SECRET_KEY,
        mail_goes_to_log=EMAIL_CONFIG["EMAIL_BACKEND"] == "django.core.mail.backends.console.EmailBackend",
    )

METRICS_TOKEN = read("METRICS_TOKEN", secret_token, "", secret=True)

LOG_LEVEL = read("LOG_LEVEL", one_of("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"), "INFO")
LOG_FORMAT = read("LOG_FORMAT", one_of("CONSOLE", "JSON"), "CONSOLE")
LOGGING = logs.configuration(
    level=LOG_LEVEL,
    as_json=LOG_FORMAT == "JSON",
    secrets=[
        SECRET_KEY,
        *SECRET_KEY_FALLBACKS,
        METRICS_TOKEN,
        str(DATABASES["default"].get("PASSWORD", "")),
        EMAIL_CONFIG.get("EMAIL_HOST_PASSWORD") or "",
    ],
)
DJANGO_STRUCTLOG_STATUS_START_LOG_LEVEL = logging.DEBUG  # one line per request, when it ends
DJANGO_STRUCTLOG_TRUST_UPSTREAM_REQUEST_ID = False
DJANGO_STRUCTLOG_TRUST_UPSTREAM_CORRELATION_ID = False
