"""Where sessions are: Django's table. As every page begins with it, the query for one is prepared."""

from datetime import datetime

from django.contrib.sessions.backends import db
from django.contrib.sessions.models import Session
from django.db.models import QuerySet
from django.utils import timezone

from .prepared import Given, prepared


@prepared
def _alive(key: Given, at: datetime) -> QuerySet[Session]:
    return Session.objects.filter(session_key=key, expire_date__gt=at)


class SessionStore(db.SessionStore):
    def _get_session_from_db(self) -> Session | None:
        for session in _alive(Given(self.session_key), timezone.now()):
            return session
        self._session_key = None
        return None
