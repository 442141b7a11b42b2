from .driver import CinderDriver

__all__ = ["CinderDriver"]
