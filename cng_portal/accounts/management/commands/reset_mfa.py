from argparse import ArgumentParser
from typing import Any

from allauth.mfa.models import Authenticator
from django.core.management import BaseCommand, CommandError

from cng_portal.accounts.models import User
from cng_portal.accounts.signin import factors
from cng_portal.common.origin import Origin, use_origin


class Command(BaseCommand):
    help = (
        "Remove all second factors of a user, who then signs in with the password and adds new ones. Meant for an "
        "administrator who has lost theirs; those of other users can be removed in Django admin. The user is notified."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("email")

    def handle(self, *, email: str, **options: Any) -> None:
        user = User.objects.filter(email__iexact=email).first()
        if user is None:
            raise CommandError(f"No user has the address {email}.")
        # Recovery codes are removed with the last factor.
        removed = list(Authenticator.objects.filter(user=user).exclude(type=Authenticator.Type.RECOVERY_CODES))
        with use_origin(Origin(device="manage.py")):
            for factor in removed:
                factors.remove_factor(factor, by=None)
        self.stdout.write(f"Removed {len(removed)} second factors of {user.email}.")
