"""Django admin: search by UUID and e-mail, prices in currency units, read-only records."""

import re
from collections.abc import Callable
from datetime import timedelta
from decimal import Decimal
from html import unescape
from pathlib import Path

import pytest
from allauth.account.models import EmailAddress
from allauth.mfa.models import Authenticator
from allauth.mfa.recovery_codes.internal.auth import RecoveryCodes
from allauth.mfa.totp.internal.auth import TOTP, generate_totp_secret
from allauth.usersessions.models import UserSession
from django.contrib import admin
from django.contrib.admin.helpers import ACTION_CHECKBOX_NAME
from django.contrib.auth.models import Group, Permission
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from billing.models import CustomerAccount
from cng_portal.accounts import services
from cng_portal.accounts.models import Customer, Project, Role, User
from cng_portal.activity.models import Activity
from cng_portal.inventory.models import CloudProject, Location, VirtualMachine, Volume
from cng_portal.monitoring.leases import acquire_lease
from cng_portal.monitoring.models import Process
from cng_portal.notifications.models import Notification
from snapshots.models import DiskImage, Operation, Snapshot
from snapshots.monitoring.failures import ADVICE
from snapshots.monitoring.storage import check_storage, measure_storage
from snapshots.storage import contract as base
from tests.factories import (
    CustomerFactory,
    LocationFactory,
    OperationFactory,
    ProjectFactory,
    SnapshotFactory,
    UserFactory,
    VirtualMachineFactory,
    VolumeFactory,
)
from tests.smtp import sent_mails

pytestmark = pytest.mark.django_db

MODELS = [User, Customer, Project, Location, VirtualMachine, Volume, Snapshot, DiskImage, Operation]


def url(model: type, page: str, *args: object) -> str:
    return reverse(f"admin:{model._meta.app_label}_{model._meta.model_name}_{page}", args=args)


@pytest.fixture
def support(client_for: Callable[..., Client]) -> Client:
    return client_for(UserFactory(admin=True))


@pytest.fixture
def everything() -> Operation:
    snapshot = SnapshotFactory(volume=VolumeFactory(attached=True))
    UserFactory(member_of=snapshot.project)
    return OperationFactory(restore=True, succeeded=True, snapshot=snapshot)


def test_a_membership_without_a_role_is_explained(support: Client) -> None:
    user = UserFactory(member_of=ProjectFactory())
    [membership] = user.memberships.all()
    inline = {"TOTAL_FORMS": 1, "INITIAL_FORMS": 1, "0-id": membership.pk, "0-user": user.pk, "0-role": ""}
    page = url(Project, "change", membership.project_id)
    answer = support.post(page, {"name": "Web", **{f"memberships-{name}": value for name, value in inline.items()}})
    assert "This field is required." in answer.text
    removed = {**{f"memberships-{name}": value for name, value in inline.items()}, "memberships-0-DELETE": "on"}
    assert "needs at least one owner" in support.post(page, {"name": "Web", **removed}).text
    UserFactory(member_of=membership.project)
    quotas = {"snapshot_quota": -1, "snapshot_gb_quota": -1, "volume_quota": -1, "volume_gb_quota": -1}
    assert support.post(page, {"name": "Web", **quotas, **removed, "memberships-0-user": " "}).status_code == 302
    assert not user.memberships.exists()


def test_the_last_owner_of_a_project_cannot_be_taken_from_it_on_the_page_of_the_person_either(support: Client) -> None:
    user = UserFactory(member_of=ProjectFactory())
    [membership] = user.memberships.all()
    inline = {"TOTAL_FORMS": 1, "INITIAL_FORMS": 1, "0-id": membership.pk, "0-user": user.pk, "0-role": Role.OWNER}

    def answered(**changed: object) -> str:
        answers = {f"memberships-{name}": value for name, value in (inline | changed).items()}
        return support.post(url(User, "change", user.pk), {"email": user.email, **answers}).text

    sentence = "needs at least one owner"
    assert sentence in answered(**{"0-project": membership.project_id, "0-DELETE": "on"})
    assert sentence in answered(**{"0-project": "no project", "0-DELETE": "on"})
    assert sentence in answered(**{"0-project": ProjectFactory().pk}), "it leaves the other one"
    assert user.memberships.get().project == membership.project


def post_user(support: Client, user: User, **changed: object) -> str:
    """Submit a user's page with some fields changed, and return the text of the response."""
    [membership] = user.memberships.all()
    fields = {"email": user.email, "is_active": "on", "customer": user.customer_id}
    inline = {"TOTAL_FORMS": 1, "INITIAL_FORMS": 1, "0-id": membership.pk, "0-user": user.pk}
    inline |= {"0-role": membership.role, "0-project": membership.project_id}
    answers = fields | {f"memberships-{name}": value for name, value in inline.items()} | changed
    answers = {name: value for name, value in answers.items() if value is not None}
    return unescape(support.post(url(User, "change", user.pk), answers).text)


def test_a_project_is_never_left_with_inactive_owners_only(support: Client) -> None:
    project = ProjectFactory(name="Shop")
    owner = UserFactory(member_of=project)
    UserFactory(member_of=project, is_active=False)
    assert "“Shop” needs at least one owner." in post_user(support, owner, is_active=None)
    assert "“Shop” needs at least one owner." in post_user(support, owner, **{"memberships-0-role": Role.VIEWER})
    assert User.objects.get(pk=owner.pk).is_active
    colleague = UserFactory(member_of=project)
    post_user(support, owner, is_active=None)
    assert not User.objects.get(pk=owner.pk).is_active
    assert "“Shop” needs at least one owner." in post_user(support, colleague, is_active=None)
    assert support.get(url(User, "delete", owner.pk)).status_code == 403


def test_a_member_is_not_added_twice(support: Client) -> None:
    user = UserFactory(member_of=ProjectFactory())
    project = user.memberships.get().project
    rows = {"TOTAL_FORMS": 1, "INITIAL_FORMS": 0, "0-user": user.pk, "0-project": project.pk, "0-role": Role.VIEWER}
    answers = {f"memberships-{name}": value for name, value in rows.items()}
    quotas = {"snapshot_quota": -1, "snapshot_gb_quota": -1, "volume_quota": -1, "volume_gb_quota": -1}
    for page, fields in (
        (url(Project, "change", project.pk), {"name": "Web"} | quotas),
        (url(User, "change", user.pk), {"email": user.email, "is_active": "on", "customer": user.customer_id}),
    ):
        assert "This user is already a member of the project." in support.post(page, fields | answers).text
    assert user.memberships.get().role == Role.OWNER


def test_a_customer_is_never_left_without_an_owner_of_its_own(support: Client) -> None:
    owner = UserFactory(member_of=ProjectFactory(customer__name="Shwe"))
    other = ProjectFactory()
    UserFactory(member_of=other).memberships.create(project=owner.memberships.get().project, role=Role.OWNER)
    sentence = "Shwe needs at least one owner of its own."
    assert sentence in post_user(support, owner, is_active=None)
    assert sentence in post_user(support, owner, customer=other.customer_id)
    assert sentence in post_user(support, owner, customer="")
    assert sentence in post_user(support, owner, **{"memberships-0-role": Role.VIEWER})
    assert sentence in post_user(support, owner, **{"memberships-0-DELETE": "on"})
    owner.refresh_from_db()
    assert (owner.is_active, owner.memberships.get().role) == (True, Role.OWNER)
    UserFactory(member_of=owner.memberships.get().project)
    assert sentence not in post_user(support, owner, is_active=None)
    assert not User.objects.get(pk=owner.pk).is_active


def test_a_new_customer_has_an_active_owner(support: Client) -> None:
    answers = {"name": "Shwe", "billing_type": "prepaid", "currency": "MMK", "time_zone": "Asia/Yangon"}
    quotas = {"snapshot_quota": -1, "snapshot_gb_quota": -1, "volume_quota": -1, "volume_gb_quota": -1}
    user = UserFactory(is_active=False, customer=None)
    page = support.post(url(Customer, "add"), answers | quotas | {"owner": user.pk})
    assert "Select a valid choice" in page.text


def test_nothing_appears_in_an_archived_project(support: Client) -> None:
    project = ProjectFactory(name="Old", archived_at=timezone.now())
    sentence = "“Old” is archived, so nothing can be created in it."
    vm = {"project": project.pk, "location": LocationFactory().pk, "name": "web", "state": "running", "vcpus": 1}
    vm |= {"memory_mb": 1024, "hourly_price_micro": "1", "volumes-TOTAL_FORMS": 0, "volumes-INITIAL_FORMS": 0}
    assert sentence in support.post(url(VirtualMachine, "add"), vm).text
    cloud = CloudProject.objects.create(location=LocationFactory(), external_id="0a1b2c")
    assert sentence in support.post(url(CloudProject, "change", cloud.pk), {"project": project.pk}).text
    deleted = VolumeFactory(project=project, deleted_at=timezone.now())
    page = support.post(url(Volume, "change", deleted.pk), {"name": "data", "position": 0}).text
    assert sentence in page
    deleted.refresh_from_db()
    assert deleted.deleted_at


def test_invalid_admin_input_is_refused_or_ignored(support: Client) -> None:
    ids = {"_selected_action": "no uuid"}
    response = support.post(url(CustomerAccount, "changelist"), {"action": "close_months", **ids}, follow=True)
    assert "in the list, so nothing was done. Select again." in response.text
    page = url(Project, "change", ProjectFactory().pk)
    assert "This field is required." in support.post(page, {"name": "", "_to_field": ""}).text


def test_an_administrator_removes_a_lost_factor_without_seeing_its_secret(support: Client) -> None:
    user = UserFactory(member_of=ProjectFactory())
    secret = generate_totp_secret()
    app = TOTP.activate(user, secret).instance
    RecoveryCodes.activate(user)
    assert secret not in support.get(url(Authenticator, "change", app.pk)).text
    assert support.get(url(Authenticator, "add")).status_code == 403
    assert support.post(url(Authenticator, "change", app.pk), {"data": "{}"}).status_code == 403
    assert support.post(url(Authenticator, "delete", app.pk), {"post": "yes"}).status_code == 302
    assert not Authenticator.objects.filter(user=user).exists()
    assert "An administrator removed a second factor: authenticator app" in Notification.objects.get(user=user).title
    entry = Activity.objects.get(action="user.remove_factor")
    assert (entry.actor.is_staff, entry.target_id) == (True, str(user.pk))


def test_an_administrator_ends_a_session_without_seeing_its_key(
    support: Client, client_for: Callable[..., Client]
) -> None:
    user = UserFactory(password="a password", member_of=ProjectFactory())
    their_client = Client()
    their_client.post(reverse("account_login"), {"login": user.email, "password": "a password"})
    session = UserSession.objects.get(user=user)
    assert session.session_key not in support.get(url(UserSession, "change", session.pk)).text
    assert user.email in support.get(url(UserSession, "changelist"), {"q": user.email}).text
    support.post(url(UserSession, "delete", session.pk), {"post": "yes"})
    assert their_client.get("/").status_code == 302
    assert Activity.objects.filter(action="user.end_session", target_id=user.pk).exists()


@pytest.mark.parametrize("key", ["web", "\x00", "3", "\u0661"])
def test_an_invalid_key_is_refused_in_choice_fields(key: str, support: Client) -> None:
    user = UserFactory(member_of=ProjectFactory())
    [membership] = user.memberships.all()
    inline = {"TOTAL_FORMS": 1, "INITIAL_FORMS": 1, "0-id": membership.pk, "0-user": user.pk, "0-project": key}
    for model, page, fields in (
        (VirtualMachine, url(VirtualMachine, "add"), {"project": key, "location": key}),
        (Customer, url(Customer, "add"), {"owner": key}),
        (User, url(User, "change", user.pk), {f"memberships-{name}": value for name, value in inline.items()}),
    ):
        answer = support.post(page, fields)
        assert answer.status_code == 200, model
        assert "errorlist" in answer.text, model


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.__name__)
def test_every_list_and_page_opens(model: type, support: Client, everything: Operation) -> None:
    assert support.get(url(model, "changelist")).status_code == 200
    assert support.get(url(model, "change", model.objects.first().pk)).status_code == 200
    if admin.site.get_model_admin(model).has_add_permission(support.get("/admin/").wsgi_request):
        assert support.get(url(model, "add")).status_code == 200


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.__name__)
def test_only_administrators_get_in(model: type, client_for: Callable[..., Client]) -> None:
    response = client_for(UserFactory()).get(url(model, "changelist"))

    assert response.status_code == 302
    assert "/admin/login/" in response["Location"]


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.__name__)
def test_a_list_shows_many_rows(model: type, support: Client) -> None:
    OperationFactory.create_batch(12, restore=True, succeeded=True, snapshot__volume__attached=True)
    assert support.get(url(model, "changelist")).status_code == 200


@pytest.mark.parametrize("model", [User, Customer, Project, VirtualMachine, Volume, Snapshot, Operation])
@pytest.mark.parametrize("written", [str, lambda uuid: uuid.hex, lambda uuid: f" {str(uuid).upper()} "])
def test_objects_are_found_by_uuid_with_and_without_hyphens(
    model: type, written: Callable, support: Client, everything: Operation
) -> None:
    OperationFactory(restore=True, succeeded=True, snapshot__volume__attached=True)
    target = model.objects.first()

    response = support.get(url(model, "changelist"), {"q": written(target.pk)})

    assert list(response.context["cl"].result_list) == [target]


@pytest.mark.parametrize("model", [Project, Volume, Snapshot, Operation])
def test_a_users_objects_are_found_by_e_mail(model: type, support: Client) -> None:
    mine = SnapshotFactory()
    UserFactory(member_of=mine.project, email="mya@example.com")
    operation = OperationFactory(snapshot=mine)
    OperationFactory()
    own = {Project: mine.project, Volume: mine.volume, Snapshot: mine, Operation: operation}

    response = support.get(url(model, "changelist"), {"q": "mya@example"})

    assert list(response.context["cl"].result_list) == [own[model]]


@pytest.mark.parametrize("model", [Snapshot, DiskImage, Operation])
def test_records_can_only_be_looked_at(model: type, support: Client, everything: Operation) -> None:
    record = model.objects.first()

    assert support.get(url(model, "add")).status_code == 403
    assert support.post(url(model, "change", record.pk), {"name": "other"}).status_code == 403
    assert support.get(url(model, "delete", record.pk)).status_code == 403


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.__name__)
def test_nothing_is_deleted_in_admin(model: type, support: Client, everything: Operation) -> None:
    assert support.get(url(model, "delete", model.objects.first().pk)).status_code == 403


def test_a_customer_made_in_admin_gets_its_default_project_and_a_number(support: Client) -> None:
    CustomerFactory(number=1039)
    owner = UserFactory()
    answers = {
        "name": "Golden Land",
        "number": "",
        "owner": owner.pk,
        "billing_type": "prepaid",
        "currency": "MMK",
        "time_zone": "Asia/Yangon",
        "snapshot_quota": -1,
        "snapshot_gb_quota": -1,
        "volume_quota": 7,
        "volume_gb_quota": -1,
    }

    response = support.post(url(Customer, "add"), answers)

    customer = Customer.objects.get(name="Golden Land")
    assert response.status_code == 302
    assert customer.number == 1040
    assert customer.projects.get().name == Project.DEFAULT_NAME
    assert customer.projects.get().memberships.get().user == owner
    assert customer.projects.get().memberships.get().role == Role.OWNER
    owner.refresh_from_db()
    assert owner.customer == customer


def test_a_customer_without_an_owner_is_explained(support: Client) -> None:
    response = support.post(url(Customer, "add"), {"name": "Golden Land"})

    assert response.context["adminform"].form.errors["owner"]
    assert not Customer.objects.exists()


def test_a_person_made_in_admin_gets_a_lower_case_address(support: Client) -> None:
    answers = {
        "email": "Aye@Example.com",
        "name": "Aye",
        "password1": "correct horse 9",
        "password2": "correct horse 9",
    }

    assert support.post(url(User, "add"), answers).status_code == 302

    created = User.objects.get(name="Aye")
    assert created.email == "aye@example.com"
    assert EmailAddress.objects.filter(user=created, email=created.email, verified=True, primary=True).exists()


def user_answers(user: User, **answers: object) -> dict[str, object]:
    fields = {"email": user.email, "name": user.name, "is_active": "on", "is_staff": "on" if user.is_staff else ""}
    return fields | {"memberships-TOTAL_FORMS": 0, "memberships-INITIAL_FORMS": 0} | answers


@pytest.fixture
def signed_in() -> tuple[User, Client]:
    user, client = UserFactory(email="aye@example.com", password="a password"), Client()
    client.post(reverse("account_login"), {"login": user.email, "password": "a password"})
    assert client.get("/").status_code == 200
    return user, client


def test_changing_users_neither_reaches_administrators_nor_grants_rights(client_for: Callable[..., Client]) -> None:
    clerk, boss, user = UserFactory(is_staff=True), UserFactory(admin=True), UserFactory()
    clerk.user_permissions.set(Permission.objects.filter(codename__in=["view_user", "change_user", "change_group"]))
    client = client_for(clerk)
    password = {"password1": "a quite new one 1", "password2": "a quite new one 1"}
    for administrator in (clerk, boss):
        answers = user_answers(administrator, is_superuser="on")
        assert client.post(url(User, "change", administrator.pk), answers).status_code == 403
        page = reverse("admin:auth_user_password_change", args=[administrator.pk])
        assert client.post(page, password).status_code == 403
    answers = user_answers(user, name="Aye", is_staff="on", is_superuser="on")
    assert client.post(url(User, "change", user.pk), answers).status_code == 302
    group = Group.objects.create(name="Clerks")
    assert client.post(url(Group, "change", group.pk), {"name": "All"}).status_code == 403
    clerk.refresh_from_db()
    user.refresh_from_db()
    assert not clerk.is_superuser
    assert (user.name, user.is_staff, user.is_superuser) == ("Aye", False, False)


def test_the_rights_of_a_group_are_in_the_log_before_and_after(support: Client) -> None:
    group, right = Group.objects.create(name="Clerks"), Permission.objects.get(codename="change_user")
    support.post(url(Group, "change", group.pk), {"name": "Clerks", "permissions": [right.pk]})
    entry = Activity.objects.get(action="admin.change")
    assert (entry.before, entry.after) == ({"permissions": []}, {"permissions": [str(right)]})
    assert support.get(url(Group, "changelist"), {"q": str(UserFactory().pk)}).status_code == 200
    assert support.post(url(Group, "delete", group.pk), {"post": "yes"}).status_code == 302


def test_a_number_that_no_group_can_have_is_explained(support: Client) -> None:
    user, group = UserFactory(), Group.objects.create(name="Clerks")
    answers = user_answers(user, groups=["9" * 30])
    assert "is not one of the available choices" in support.post(url(User, "change", user.pk), answers).text
    answers = {"name": "Clerks", "permissions": ["9" * 30]}
    assert "is not one of the available choices" in support.post(url(Group, "change", group.pk), answers).text


def test_a_password_set_by_an_administrator_ends_sessions_and_is_notified(
    support: Client, signed_in: tuple[User, Client]
) -> None:
    user, their_client = signed_in
    page = reverse("admin:auth_user_password_change", args=[user.pk])
    support.post(page, {"password1": "a quite new one 1", "password2": "a quite new one 1"})
    assert not UserSession.objects.filter(user=user).exists()
    assert their_client.get("/").status_code == 302
    assert user.notifications.get().title == "An administrator changed your password"


def test_an_address_set_by_an_administrator_is_the_only_one_and_both_are_notified(
    support: Client, signed_in: tuple[User, Client], django_capture_on_commit_callbacks: Callable
) -> None:
    user, _theirs = signed_in
    services.set_verified_email(user)
    with django_capture_on_commit_callbacks(execute=True):
        support.post(url(User, "change", user.pk), user_answers(user, email="new@example.com"))
    assert user.notifications.get().title == "Your e-mail address is now new@example.com"
    assert {message.to[0] for message in sent_mails()} == {"aye@example.com", "new@example.com"}
    sent_mails().clear()
    for address in ("aye@example.com", "new@example.com"):
        Client().post(reverse("account_reset_password"), {"email": address})
    links = {message.to[0]: "/password/reset/key/" in message.body for message in sent_mails()}
    assert links == {"aye@example.com": False, "new@example.com": True}


def test_a_deactivated_user_is_signed_out(support: Client, signed_in: tuple[User, Client]) -> None:
    user, their_client = signed_in
    for active, status in (("", 302), ("on", 302)):
        support.post(url(User, "change", user.pk), user_answers(user, is_active=active))
        assert their_client.get("/").status_code == status


def test_all_sessions_of_selected_users_are_ended(support: Client, signed_in: tuple[User, Client]) -> None:
    user, their_client = signed_in
    answers = {"action": "end_sessions", ACTION_CHECKBOX_NAME: [str(user.pk)]}
    assert "1 session was ended." in support.post(url(User, "changelist"), answers, follow=True).text
    assert their_client.get("/").status_code == 302
    entry = Activity.objects.get(action="user.end_session")
    assert (entry.actor.is_staff, entry.target_id, entry.before) == (True, str(user.pk), {"sessions": 1})


def test_administrators_change_their_own_password_on_the_usual_page(support: Client) -> None:
    assert support.get(reverse("admin:password_change"))["Location"] == reverse("account_change_password")


def machine_answers(vm: VirtualMachine, **answers: object) -> dict[str, object]:
    return {
        "name": vm.name,
        "state": vm.state,
        "vcpus": vm.vcpus,
        "memory_mb": vm.memory_mb,
        "hourly_price_micro": "0",
        "created_at_0": "2026-11-22",
        "created_at_1": "10:00:00",
        "volumes-TOTAL_FORMS": 0,
        "volumes-INITIAL_FORMS": 0,
        "switches-TOTAL_FORMS": 0,
        "switches-INITIAL_FORMS": 0,
    } | answers


@pytest.mark.parametrize(("typed", "micro"), [("45.5", 45_500_000), ("0.000001", 1), ("12", 12_000_000), ("0", 0)])
def test_prices_are_typed_in_the_currency_and_kept_in_millionths(typed: str, micro: int, support: Client) -> None:
    vm = VirtualMachineFactory()

    response = support.post(url(VirtualMachine, "change", vm.pk), machine_answers(vm, hourly_price_micro=typed))

    vm.refresh_from_db()
    assert response.status_code == 302
    assert vm.hourly_price_micro == micro
    page = support.get(url(VirtualMachine, "change", vm.pk)).content.decode()
    assert f'name="hourly_price_micro" value="{Decimal(typed).normalize():f}"' in page


@pytest.mark.parametrize("typed", ["-1", "0.0000001", "much", ""])
def test_an_unusable_price_is_refused_and_kept_in_the_field(typed: str, support: Client) -> None:
    vm = VirtualMachineFactory(hourly_price_micro=7)

    response = support.post(url(VirtualMachine, "change", vm.pk), machine_answers(vm, hourly_price_micro=typed))

    assert response.context["adminform"].form.errors["hourly_price_micro"]
    assert response.context["adminform"].form["hourly_price_micro"].value() == typed
    vm.refresh_from_db()
    assert vm.hourly_price_micro == 7


def test_admin_attaches_a_volume_only_to_a_machine_of_its_project_and_location(support: Client) -> None:
    volume, stranger = VolumeFactory(), VirtualMachineFactory()
    answers = {"name": volume.name, "vm": stranger.pk, "position": 0}

    response = support.post(url(Volume, "change", volume.pk), answers)

    assert response.context["adminform"].form.errors["vm"]
    volume.refresh_from_db()
    assert volume.vm is None


def test_a_location_names_an_existing_storage_engine(support: Client) -> None:
    answers = {"code": "1CNG-NPT-AZ01", "city": "Naypyidaw", "country": "MM", "region": "asia", "driver_options": "{}"}
    answers |= {"default_interval": "daily", "default_at": "02:00", "default_retention_count": "2"}

    response = support.post(url(Location, "add"), answers | {"driver": "tape"})
    assert response.context["adminform"].form.errors["driver"]

    assert support.post(url(Location, "add"), answers | {"driver": "local", "active": "on"}).status_code == 302


def test_project_members_are_kept_with_the_project(support: Client) -> None:
    project, user = ProjectFactory(), UserFactory()
    answers = {
        "name": "Software",
        "snapshot_quota": 5,
        "snapshot_gb_quota": -1,
        "volume_quota": 7,
        "volume_gb_quota": -1,
        "memberships-TOTAL_FORMS": 1,
        "memberships-INITIAL_FORMS": 0,
        "memberships-0-user": user.pk,
        "memberships-0-role": Role.VIEWER,
    }

    response = support.post(url(Project, "change", project.pk), answers)

    assert response.status_code == 302
    assert project.memberships.get().user == user


def test_an_old_location_keeps_its_code(support: Client) -> None:
    location = LocationFactory(code="1CNG-YGN-AZ09")
    answers = {"code": "OTHER", "city": "Yangon", "country": "MM", "region": "asia", "driver": "local"}

    support.post(url(Location, "change", location.pk), answers | {"driver_options": "{}"})

    assert Location.objects.get().code == "1CNG-YGN-AZ09"


OVERVIEW = "/admin/snapshots/operation/overview/"


def text_of(html: str) -> str:
    return " ".join(re.sub(r"<[^>]+>", " ", html).split())


def test_the_overview_shows_waiting_and_failed_operations_with_advice(support: Client, storage_root: Path) -> None:
    now = timezone.now()
    location, broken = LocationFactory(code="1CNG-YGN-AZ01"), LocationFactory(code="1CNG-MDY-AZ01", driver="none")
    snapshot = SnapshotFactory(volume__location=location, name="nightly", volume__project__customer__number=1039)
    snapshot.disks.update(allocated_bytes=5 * 1024**3, captured_at=now)
    OperationFactory(snapshot=snapshot, not_before=now - timedelta(minutes=42))
    OperationFactory.create_batch(2, snapshot=snapshot, capture=True, failed=True, error="No room was left.")
    OperationFactory(running=True, lease_until=now - timedelta(seconds=1))
    Process.objects.create(kind="worker", host="app-7", pid=4711, heartbeat_at=now - timedelta(minutes=3))
    check_storage()
    measure_storage()

    html = text_of(support.get(OVERVIEW).content.decode())

    assert "Take Snapshot × 2 No room was left. Nothing was stored and nothing is charged." in html
    assert "nightly , #001039" in html
    assert "The oldest operation has waited 42" in html
    assert "No worker is running" in html
    assert "No scheduler is running" in html
    assert "An operation has waited 42 minutes for a worker." in html
    assert "The worker of a running operation died." in html
    assert f"The storage of {broken.code} is failing: Location {broken.code} asks for the storage driver" in html
    assert "5 GB by 1 snapshot" in html
    assert "app-7 4711" in html
    assert "silent: the process or its host died" in html
    assert "Operations overview" in support.get("/admin/").content.decode()
    assert OVERVIEW in support.get(url(Operation, "changelist")).content.decode()


def test_the_overview_of_a_healthy_portal_has_no_warnings(support: Client) -> None:
    LocationFactory()
    Process.objects.create(kind="worker", host="app-7", pid=1)
    scheduler = Process.objects.create(kind="scheduler", host="app-8", pid=2)
    acquire_lease("scheduler", holder=str(scheduler.pk), seconds=30)
    check_storage()

    html = support.get(OVERVIEW).content.decode()

    assert "messagelist" not in html
    assert "Scheduler (leader)" in text_of(html)
    assert "Nothing is waiting for a worker." in html
    assert "No failures." in html
    assert "Healthy" in html


@pytest.mark.parametrize("count", [0, 12])
def test_the_overview_shows_few_and_many_failures(count: int, support: Client) -> None:
    for _ in range(count):
        OperationFactory(failed=True)
        OperationFactory()
        Process.objects.create(kind="worker", host="a", pid=1)
    LocationFactory.create_batch(count)
    assert support.get(OVERVIEW).status_code == 200


def test_the_overview_has_advice_for_each_cause(support: Client, storage_root: Path) -> None:
    for cause in "NoSpace", "QuotaReached", "Denied", "Unavailable", "TooSlow", "Busy", "WorkerDied", "Unexpected":
        OperationFactory(failed=True, error=f"It was {cause}.", cause=cause)
    html = text_of(support.get(OVERVIEW).content.decode())
    for cause, mended in {
        "NoSpace": "The storage is full. Give it room",
        "QuotaReached": "Raise the project's quota in the cloud",
        "Denied": "lacks a right in the cloud",
        "Unavailable": "Check that it works",
        "TooSlow": "Check whether it is overloaded",
        "Busy": "Find out by what",
        "WorkerDied": "Its journal may say why",
        "Unexpected": "This is a bug in the portal.",
    }.items():
        assert mended in unescape(html[html.index(f"It was {cause}.") :][:200]), cause


def test_every_error_of_a_driver_has_its_own_advice_and_fits_the_column() -> None:
    errors = [each for each in vars(base).values() if isinstance(each, type) and issubclass(each, base.StorageError)]
    assert len({str(base.advice_for(each.__name__)) for each in errors}) == len(errors) > 8
    assert max(len(each.__name__) for each in errors) <= Operation._meta.get_field("cause").max_length


@pytest.mark.parametrize("kind", Operation.Kind.values)
def test_every_kind_of_failure_has_its_advice(kind: str) -> None:
    assert ADVICE[Operation.Kind(kind)]


def test_the_overview_is_for_administrators(client_for: Callable[..., Client]) -> None:
    assert client_for(UserFactory()).get(OVERVIEW).status_code == 302
    assert client_for(UserFactory(is_staff=True)).get(OVERVIEW).status_code == 403


@pytest.mark.parametrize("target", ["1/no-key", "1/3f3f3f3f-0000-4000-8000-000000000000", "nothing/at-all"])
def test_the_support_desk_leads_nowhere_else(support: Client, target: str) -> None:
    assert support.get(f"/admin/r/{target}/").status_code == 404
