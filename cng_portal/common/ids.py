from uuid import UUID


def parse_uuid(text: str) -> UUID | None:
    """Return the UUID, or None if the text isn't one."""
    try:
        return UUID(text)
    except ValueError:
        return None
