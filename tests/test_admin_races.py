"""Administrators who save at the same time as others: one succeeds, and the others get a reason."""

from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any

import pytest
from django.contrib.auth.models import Group
from django.db import connections
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from billing.models import Package
from cng_portal.accounts import projects, roles
from cng_portal.accounts.models import Customer, Membership, Project, Role, User
from cng_portal.inventory.models import Location
from cng_portal.support.models import SupportContact
from tests.accounts.test_sign_in import PASSWORD
from tests.billing.test_admin import FUTURE, package_form
from tests.factories import InvitationFactory, LocationFactory, ProjectFactory, UserFactory

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.both_databases]

TAKERS = 8
QUOTAS = {"snapshot_quota": -1, "snapshot_gb_quota": -1, "volume_quota": -1, "volume_gb_quota": -1}


@pytest.fixture
def race(client_for: Callable[..., Client]) -> Callable[..., Counter]:
    """race(url, answers, sentence) posts the answers in TAKERS threads at once, beside other actions. Counts outcomes."""
    administrators = [client_for(UserFactory(admin=True)) for _number in range(TAKERS)]

    def race(address: str, answers: dict[str, Any], sentence: str, *others: Callable[[], object]) -> Counter:
        barrier = Barrier(TAKERS + len(others))

        def post(client: Client) -> str:
            response = client.post(address, answers)
            if response.status_code == 302:
                return "saved"
            return "refused" if sentence in response.text else f"{response.status_code}: {response.text}"

        def run(action: Callable[[], Any]) -> str:
            try:
                barrier.wait()
                return action()
            except Exception as error:
                return f"{type(error).__name__}: {error}"
            finally:
                connections.close_all()

        actions = [*others, *(lambda client=client: post(client) for client in administrators)]
        with ThreadPoolExecutor(len(actions)) as pool:
            return Counter(pool.map(run, actions))

    return race


def formset(**rows: dict[str, Any]) -> dict[str, Any]:
    return {"memberships-TOTAL_FORMS": 0, "memberships-INITIAL_FORMS": 0} | rows


def test_a_user_is_added_once(race: Callable[..., Counter]) -> None:
    answers = {"email": "mya@example.com", "password1": PASSWORD, "password2": PASSWORD}
    outcomes = race(reverse("admin:accounts_user_add"), answers, "This e-mail is already in use.")
    assert outcomes == {"saved": 1, "refused": TAKERS - 1}
    assert User.objects.filter(email="mya@example.com").count() == 1


def test_an_address_is_taken_once_by_an_invited_person_or_an_administrator(race: Callable[..., Counter]) -> None:
    invitation = InvitationFactory(email="mya@example.com")

    def sign_up() -> str:
        try:
            roles.sign_up(invitation=invitation, name="Mya", password=PASSWORD, at=invitation.created_at)
        except roles.ActionRefused as refusal:
            assert "already exists" in str(refusal)
            return "refused"
        return "saved"

    answers = {"email": "mya@example.com", "password1": PASSWORD, "password2": PASSWORD}
    outcomes = race(reverse("admin:accounts_user_add"), answers, "This e-mail is already in use.", sign_up)
    assert outcomes == {"saved": 1, "refused": TAKERS}


def test_a_customer_number_is_given_once(race: Callable[..., Counter]) -> None:
    answers = {"name": "Shwe", "number": 77, "billing_type": "prepaid", "currency": "MMK", "time_zone": "Asia/Yangon"}
    answers |= QUOTAS | {"owner": UserFactory().pk}
    outcomes = race(
        reverse("admin:accounts_customer_add"), answers, "Customer with this Customer number already exists."
    )
    assert outcomes == {"saved": 1, "refused": TAKERS - 1}


def test_a_package_and_its_next_price_are_added_once(race: Callable[..., Counter]) -> None:
    answers = package_form(location=LocationFactory().pk, versions=[(None, timezone.now(), "0.4")])
    outcomes = race(reverse("admin:billing_package_add"), answers, "Only one package per zone is supported")
    assert outcomes == {"saved": 1, "refused": TAKERS - 1}
    package = Package.objects.get()
    [first] = package.versions.all()
    answers = package_form(package, [(first.pk, first.starts_at, "0.4"), (None, FUTURE, "0.5")])
    sentence = "The package already has a price that starts at this instant."
    outcomes = race(reverse("admin:billing_package_change", args=[package.pk]), answers, sentence)
    assert outcomes == {"saved": 1, "refused": TAKERS - 1}


def test_free_customer_numbers_are_given_without_a_clash(race: Callable[..., Counter]) -> None:
    answers = {"name": "Shwe", "billing_type": "prepaid", "currency": "MMK", "time_zone": "Asia/Yangon"}
    answers |= QUOTAS | {"owner": UserFactory().pk}
    assert race(reverse("admin:accounts_customer_add"), answers, "") == {"saved": TAKERS}
    assert Customer.objects.filter(name="Shwe").values("number").distinct().count() == TAKERS


def test_a_project_is_added_once_by_a_customer_or_an_administrator(race: Callable[..., Counter]) -> None:
    owner = UserFactory(member_of=ProjectFactory())

    def create() -> str:
        try:
            projects.create_project(name="Shop", by=owner)
        except Exception as error:
            assert "already has a project with this name" in str(error)
            return "refused"
        return "saved"

    answers = {"customer": owner.customer_id, "name": "Shop"} | QUOTAS | formset()
    sentence = "The customer already has a project of this name."
    outcomes = race(reverse("admin:accounts_project_add"), answers, sentence, create)
    assert outcomes == {"saved": 1, "refused": TAKERS}
    assert Project.objects.filter(name="Shop").count() == 1


def test_a_member_is_added_once_by_an_invitation_or_an_administrator(race: Callable[..., Counter]) -> None:
    project = ProjectFactory()
    [owner] = [UserFactory(member_of=project)]
    user = UserFactory(email="mya@example.com")
    invitation = InvitationFactory(project=project, invited_by=owner, email=user.email)

    def accept() -> str:
        roles.accept(invitation=invitation, user=user, at=invitation.created_at)
        return "accepted"

    rows = {"TOTAL_FORMS": 1, "0-user": user.pk, "0-role": Role.MEMBER}
    answers = (
        {"name": project.name} | QUOTAS | formset(**{f"memberships-{name}": value for name, value in rows.items()})
    )
    sentence = "This user is already a member of the project."
    outcomes = race(reverse("admin:accounts_project_change", args=[project.pk]), answers, sentence, accept)
    assert outcomes["accepted"] == 1 and outcomes["saved"] + outcomes["refused"] == TAKERS and outcomes["saved"] <= 1
    assert Membership.objects.filter(project=project, user=user).count() == 1


def test_of_two_concurrent_deactivations_of_owners_one_is_refused(
    race: Callable[..., Counter], client_for: Callable[..., Client]
) -> None:
    project = ProjectFactory()
    first, second = (UserFactory(member_of=project) for _number in range(2))
    administrator = client_for(UserFactory(admin=True))

    def answers(user: User) -> dict[str, Any]:
        rows = {"TOTAL_FORMS": 1, "INITIAL_FORMS": 1, "0-id": user.memberships.get().pk, "0-user": user.pk}
        rows |= {"0-role": Role.OWNER, "0-project": project.pk}
        fields = {"email": user.email, "customer": user.customer_id}
        return fields | {f"memberships-{name}": value for name, value in rows.items()}

    def deactivate() -> str:
        administrator.post(reverse("admin:accounts_user_change", args=[second.pk]), answers(second))
        return "done"

    race(reverse("admin:accounts_user_change", args=[first.pk]), answers(first), "", deactivate)
    assert User.objects.filter(memberships__project=project, is_active=True).count() == 1


@pytest.mark.parametrize(
    ("model", "answers", "sentence"),
    [
        (Group, {"name": "Support"}, "Group with this Name already exists."),
        (
            Location,
            {
                "code": "1CNG-NEW",
                "city": "Yangon",
                "country": "MM",
                "region": "asia",
                "driver": "local",
                "driver_options": "{}",
                "default_interval": "daily",
                "default_at": "02:00",
                "default_retention_count": 2,
            },
            "Location with this Code already exists.",
        ),
        (SupportContact, {"email": "help@example.com"}, "There is a support contact already. Change that one."),
    ],
)
def test_unique_rows_are_added_once(
    race: Callable[..., Counter], client_for: Callable[..., Client], model: Any, answers: dict[str, Any], sentence: str
) -> None:
    outcomes = race(reverse(f"admin:{model._meta.app_label}_{model._meta.model_name}_add"), answers, sentence)
    assert outcomes == {"saved": 1, "refused": TAKERS - 1}
