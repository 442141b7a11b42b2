"""One module for each subject; urls.py of the project needs these from here."""

from .components import components
from .dashboard import dashboard

__all__ = ["components", "dashboard"]
