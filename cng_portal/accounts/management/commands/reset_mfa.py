from argparse import ArgumentParser
from typing import Any

from allauth.mfa.models import Authenticator
from django.core.management import BaseCommand, CommandError

from cng_portal.accounts.models import User
from cng_portal.accounts.signin import factors
from cng_portal.common.origin import Origin, use_origin


class Command(BaseCommand):
    help = (
        "Take all second factors of a person away, who then signs in with the password alone and adds new ones. For an "
        "administrator who has lost them; everybody else's are removed in Django admin. The person is told."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("email")

    def handle(self, *, email: str, **options: Any) -> None:
        person = User.objects.filter(email__iexact=email).first()
        if person is None:
            raise CommandError(f"Nobody signs in with {email}.")
        # the recovery codes go with the last one
        found = list(Authenticator.objects.filter(user=person).exclude(type=Authenticator.Type.RECOVERY_CODES))
        with use_origin(Origin(device="manage.py")):
            for factor in found:
                factors.take_away(factor, by=None)
        self.stdout.write(f"{person.email} had {len(found)} second factors and has none now.")
