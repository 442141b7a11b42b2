"""Logging of every process, our own lines and those of libraries. docs/log-events.md lists our events.

A line has the fields bound at the time: the ID of the request or operation, the scheduler's duty. Secrets are redacted last,
in tracebacks too.
"""

import re
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

import structlog
from django.conf import settings
from django.db import DatabaseError
from django.http import HttpRequest, HttpResponse
from django.urls import Resolver404, resolve
from django_structlog.middlewares.request import RequestMiddleware as StructlogMiddleware
from structlog.typing import EventDict, Processor

from cng_portal.common.log_context import get_request_id

HIDDEN = "***"
SECRET_WORDS = (
    r"password|passwd|secret|token|authorization|cookie|sessionid|csrftoken|csrfmiddlewaretoken|session_key|api_?key"
)
NAMED = re.compile(
    rf"((?:\b|_)(?:{SECRET_WORDS})(?:\d|_\w+)?[\"']?\s*[:=]\s*)(?:(?:bearer|basic)\s+)?[\"']?[^\s\"'&,;)}}\]]+",
    re.IGNORECASE,
)
IN_URL = re.compile(r"(\b[\w+.-]+://[^\s:/@]*:)[^\s@]+@")
# Paths with tokens, as in deploy/nginx.conf: libraries log whole paths.
TOKEN_PATH = re.compile(r"(/(?:accounts/[a-z/-]*/key|accounts/confirm-email|invitations)/)[^/\s\"']+")
SECRET_KEY = re.compile(rf"(?:^|_)(?:{SECRET_WORDS})", re.IGNORECASE)
CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
# URL arguments that grant access: links for a new password, invitations.
SECRET_ARGUMENTS = {"key", "token", "uidb36", "code", "secret"}


def configuration(*, level: str, as_json: bool, secrets: Iterable[str]) -> dict[str, Any]:
    """Return the setting LOGGING. The values of `secrets` are redacted everywhere, except short ones, which could be
    ordinary words.
    """
    redact = redactor(secrets)
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,  # plain, because tracebacks with variables show passwords
    ]
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.PositionalArgumentsFormatter(),
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    console = structlog.dev.ConsoleRenderer(colors=False, exception_formatter=structlog.dev.plain_traceback)
    render: list[Processor] = (
        [structlog.processors.JSONRenderer(ensure_ascii=False)] if as_json else [escape_control_characters, console]
    )
    remove_meta = structlog.stdlib.ProcessorFormatter.remove_processors_meta
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {
            "line": {
                "()": structlog.stdlib.ProcessorFormatter,
                "foreign_pre_chain": shared,
                "processors": [remove_meta, redact, *render],
            }
        },
        "handlers": {"console": {"class": "logging.StreamHandler", "formatter": "line"}},
        "root": {"handlers": ["console"], "level": level},
        "loggers": {
            # Repeats what RequestMiddleware logs, with the whole URL.
            "django.request": {"level": "CRITICAL"},
            "django.security.DisallowedHost": {"level": "CRITICAL"},  # anybody can cause one; it is answered with 400
            # Its lines have URLs, which contain five characters of a new password's hash.
            "httpx": {"level": "WARNING"},
            # Its statements have parameters.
            "django.db.backends": {"level": "INFO"},
        },
    }


def redactor(secrets: Iterable[str]) -> Processor:
    words = sorted({secret for secret in secrets if len(secret) >= 8}, key=len, reverse=True)
    values = re.compile("|".join(map(re.escape, words))) if words else None

    def clean(value: Any) -> Any:
        if isinstance(value, str):
            value = values.sub(HIDDEN, value) if values else value
            value = TOKEN_PATH.sub(rf"\1{HIDDEN}", value)
            return IN_URL.sub(rf"\1{HIDDEN}@", NAMED.sub(rf"\1{HIDDEN}", value))
        if isinstance(value, dict):
            return {key: HIDDEN if SECRET_KEY.search(str(key)) else clean(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [clean(item) for item in value]
        return value if value is None or isinstance(value, bool | int | float) else clean(str(value))

    def redact(logger: Any, method: str, event: EventDict) -> EventDict:
        return clean(dict(event))

    return redact


def escape_control_characters(logger: Any, method: str, event: EventDict) -> EventDict:
    """Escape control characters, so that input can't forge lines or move the cursor, and indent tracebacks."""

    def escape(text: str) -> str:
        return CONTROL.sub(lambda match: match[0].encode("unicode_escape").decode(), text)

    escaped = {key: escape(value) if isinstance(value, str) else value for key, value in event.items()}
    if traceback := event.get("exception"):
        escaped["exception"] = "\n".join(f"    {escape(line)}" for line in str(traceback).split("\n"))
    return escaped


class RequestMiddleware(StructlogMiddleware):
    """Log one line per request, and bind its ID to all lines and to the response, for customers to quote."""

    def __call__(self, request: HttpRequest) -> Any:
        try:
            return super().__call__(request)
        finally:
            structlog.contextvars.clear_contextvars()  # also when the error page fails: the thread is reused

    @staticmethod
    def format_request(request: HttpRequest) -> str:
        """Return method and path, without secrets in the path and without the query, which may contain names and codes."""
        path = request.path
        try:
            match = request.resolver_match or resolve(request.path_info)
        except Resolver404:
            return f"{request.method} {path}"
        for name in SECRET_ARGUMENTS & match.kwargs.keys():
            path = path.replace(str(match.kwargs[name]), HIDDEN)
        return f"{request.method} {path}"

    @staticmethod
    def bind_user_id(request: HttpRequest) -> None:
        with suppress(DatabaseError):  # log the request even when the database is down
            StructlogMiddleware.bind_user_id(request)

    @classmethod
    def bind_ip(cls, request: HttpRequest) -> None:
        structlog.contextvars.bind_contextvars(ip=client_address(request))

    def handle_response(self, request: HttpRequest, response: HttpResponse) -> None:
        response["X-Request-ID"] = get_request_id()
        super().handle_response(request, response)


def client_address(request: HttpRequest) -> str:
    """Return the client's IP address. In X-Forwarded-For, only the entries of our own proxies are trusted."""
    proxies: int = settings.ALLAUTH_TRUSTED_PROXY_COUNT
    forwarded = request.headers.get("X-Forwarded-For", "").split(",")
    client = forwarded[-proxies].strip() if 0 < proxies <= len(forwarded) else ""
    return client or request.META.get("REMOTE_ADDR", "")
