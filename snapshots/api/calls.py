"""What requests of both APIs have in common: a credential, and what it may do."""

from dataclasses import dataclass
from datetime import datetime

import structlog
from django.core.exceptions import PermissionDenied
from django.http import HttpRequest
from django.utils.translation import gettext as _

from cng_portal.accounts.credentials import may
from cng_portal.accounts.models import Act, ApplicationCredential, Project, User

logger = structlog.stdlib.get_logger(__name__)

MAX_BODY = 64 * 1024


@dataclass(kw_only=True)
class CredentialCall:
    """A request with a valid credential. It reaches the user's objects in the credential's project."""

    request: HttpRequest
    credential: ApplicationCredential
    at: datetime

    @property
    def user(self) -> User:
        return self.credential.user

    @property
    def project(self) -> Project:
        return self.credential.project

    @property
    def sees_prices(self) -> bool:
        return Act.BILL in self.credential.acts

    def require(self, act: Act) -> None:
        """Raise PermissionDenied unless the credential has the permission, and a role above viewer."""
        if not may(self.credential, act):
            logger.info("credential.refused", credential=str(self.credential.pk), act=act.value)
            raise PermissionDenied(
                _("This credential doesn't have the permission “%(act)s”. Create one that has, in the portal.")
                % {"act": act.label}
            )
