import pytest


def log_events(caplog: pytest.LogCaptureFixture) -> list[str]:
    """The names of the events that our own loggers have written."""
    return [record.msg["event"] for record in caplog.records if isinstance(record.msg, dict)]
