from typing import Any

from allauth.account import auth_backends
from django.db.models import Count, Exists, OuterRef, Subquery
from django.db.models.expressions import Combinable
from django.db.models.functions import Coalesce

from .models import Notice, User

# What the apps above have to say of a person on every page: {name: expression over User}, added when they are ready.
SHOWN: dict[str, Combinable | Exists] = {}


class AuthenticationBackend(auth_backends.AuthenticationBackend):
    def get_user(self, user_id: Any) -> User | None:
        """The person who is signed in, with what every page shows of them, in one query: the customer,
        `unseen_notices`, the number on the bell, and what is in SHOWN.
        """
        unseen = Notice.objects.unseen().filter(user=OuterRef("pk")).values("user").annotate(count=Count("pk"))
        counted = User.objects.annotate(unseen_notices=Coalesce(Subquery(unseen.values("count")), 0), **SHOWN)
        user = counted.filter(pk=user_id).first()
        return user if user and self.user_can_authenticate(user) else None
