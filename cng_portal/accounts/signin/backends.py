from typing import Any

from allauth.account import auth_backends
from allauth.mfa.models import Authenticator
from django.db.models import Exists, OuterRef

from ..models import User

FACTORS = [Authenticator.Type.TOTP, Authenticator.Type.WEBAUTHN]


class AuthenticationBackend(auth_backends.AuthenticationBackend):
    def get_user(self, user_id: Any) -> User | None:
        """Return the signed-in user, annotated with `has_factor`: whether they have a second factor."""
        has_factor = Exists(Authenticator.objects.filter(user=OuterRef("pk"), type__in=FACTORS))
        users = User.objects.annotate(has_factor=has_factor).filter(pk=user_id).order_by()
        return next(filter(self.user_can_authenticate, users), None)
