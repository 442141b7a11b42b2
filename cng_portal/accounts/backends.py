from typing import Any
from uuid import UUID

from allauth.account import auth_backends
from allauth.mfa.models import Authenticator
from django.db.models import Aggregate, Count, Exists, JSONField, OuterRef, QuerySet, Subquery
from django.db.models.expressions import Combinable
from django.db.models.functions import Coalesce, JSONArray

from .models import Membership, Notice, User
from .prepared import prepared

# What the apps above have to say of a person on every page: {name: expression over User}, added when they are ready.
SHOWN: dict[str, Combinable | Exists] = {}
FACTORS = [Authenticator.Type.TOTP, Authenticator.Type.WEBAUTHN]


class Listed(Aggregate):
    """The values of a group as one JSON array."""

    function = "JSONB_AGG"
    output_field = JSONField()

    def as_sqlite(self, compiler: Any, connection: Any, **context: Any) -> Any:
        return self.as_sql(compiler, connection, function="JSON_GROUP_ARRAY", **context)


@prepared
def _person(pk: UUID) -> QuerySet[User]:
    """With what every page shows of them, or asks of them."""
    unseen = Notice.objects.unseen().filter(user=OuterRef("pk")).values("user").annotate(count=Count("pk"))
    roles = Membership.objects.filter(user=OuterRef("pk")).values("user")
    return User.objects.filter(pk=pk).annotate(
        unseen_notices=Coalesce(Subquery(unseen.values("count")), 0),
        seen_as_json=Subquery(
            roles.annotate(listed=Listed(JSONArray("project_id", "project__customer_id", "role"))).values("listed")
        ),
        has_factor=Exists(Authenticator.objects.filter(user=OuterRef("pk"), type__in=FACTORS)),
        **SHOWN,
    )


class AuthenticationBackend(auth_backends.AuthenticationBackend):
    def get_user(self, user_id: Any) -> User | None:
        """The person who is signed in, with what every page shows or asks of them, in one query: the customer, the
        roles, `unseen_notices`, the number on the bell, `has_factor`, whether there is a second factor, and what is in
        SHOWN.
        """
        user: Any = next(iter(_person(user_id)), None)
        if user is None or not self.user_can_authenticate(user):
            return None
        user.seen = [(UUID(project), UUID(customer), role) for project, customer, role in user.seen_as_json or []]
        return user  # type: ignore[no-any-return]
