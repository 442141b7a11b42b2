from typing import Any

from allauth.account import auth_backends
from django.db.models import Count, OuterRef, Subquery
from django.db.models.functions import Coalesce

from .models import Notice, User


class AuthenticationBackend(auth_backends.AuthenticationBackend):
    def get_user(self, user_id: Any) -> User | None:
        """The person who is signed in, with what every page shows of them, in one query: the customer, and
        `unseen_notices`, the number on the bell.
        """
        unseen = Notice.objects.unseen().filter(user=OuterRef("pk")).values("user").annotate(count=Count("pk"))
        counted = User.objects.annotate(unseen_notices=Coalesce(Subquery(unseen.values("count")), 0))
        user = counted.filter(pk=user_id).first()
        return user if user and self.user_can_authenticate(user) else None
