"""One module for each subject; urls.py of the project needs the dashboard from here."""

from .dashboard import dashboard

__all__ = ["dashboard"]
