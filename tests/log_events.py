import pytest


def log_events(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return the names of the events that the portal's loggers have written."""
    return [record.msg["event"] for record in caplog.records if isinstance(record.msg, dict)]
