from .driver import LocalDriver

__all__ = ["LocalDriver"]
