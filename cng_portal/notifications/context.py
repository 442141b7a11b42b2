from django.http import HttpRequest


def bell(request: HttpRequest) -> dict[str, object]:
    """`unread_count` for the bell; the query runs when the template asks for it."""
    user = getattr(request, "user", None)  # A request refused before the sign-in middleware has none.
    if user is None or not user.is_authenticated:
        return {}
    return {"unread_count": user.notifications.unread().count}
