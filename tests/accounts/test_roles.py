"""Members of a project: invitations that work once, and a project that never lacks an owner."""

import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from html import unescape
from threading import Barrier
from typing import TYPE_CHECKING

import pytest
from django.db import connections
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from cng_portal.accounts import roles
from cng_portal.accounts.models import Invitation, Membership, Project, Role, User
from cng_portal.activity.models import Activity
from cng_portal.mail.models import OutgoingMail
from tests.accounts.test_sign_in import PASSWORD
from tests.factories import InvitationFactory, MembershipFactory, OutgoingMailFactory, ProjectFactory, UserFactory
from tests.smtp import sent_mails

if TYPE_CHECKING:
    from pytest_django.fixtures import SettingsWrapper

pytestmark = pytest.mark.django_db


@pytest.fixture
def project() -> Project:
    return ProjectFactory(name="Default")


@pytest.fixture
def owner(project: Project) -> User:
    return UserFactory(name="Aye", member_of=project)


def link_of(invitation: Invitation) -> str:
    return reverse("accounts:invitation", args=[roles.sign_token(invitation)])


def role_of(user: User, project: Project) -> str | None:
    return Membership.objects.filter(user=user, project=project).values_list("role", flat=True).first()


def test_an_invited_person_signs_up_and_joins(project: Project, owner: User, client_for: Callable) -> None:
    answers = {"email": "New@Example.com", "role": Role.MEMBER}
    client_for(owner).post(reverse("accounts:invite", args=[project.pk]), answers)
    [message] = sent_mails()
    assert message.to == ["new@example.com"]
    link = re.search(r"http://\S+?(/invitations/\S+)", message.body)[1]
    guest = Client()
    assert "Aye invites you to the project “Default”" in guest.get(link).text
    assert guest.post(link, {"name": "Mya", "password": PASSWORD})["Location"] == "/"
    mya = User.objects.get(email="new@example.com")
    assert (role_of(mya, project), mya.customer, str(mya)) == (Role.MEMBER, project.customer, "Mya")
    assert guest.get("/").context["user"] == mya
    assert mya.emailaddress_set.get().verified
    # once
    assert Client().get(link).status_code == 404
    actions = Activity.objects.filter(customer=project.customer).values_list("action", flat=True)
    assert {"invitation.send", "user.join"} <= set(actions)


def test_an_existing_user_joins_with_their_account(project: Project, client_for: Callable) -> None:
    user = UserFactory(email="mya@example.com")
    link = link_of(InvitationFactory(project=project, email="Mya@example.com", role=Role.VIEWER))
    assert f"/accounts/login/?next={link}" in Client().get(link).text.replace("%3A", ":")
    Client().post(link, {"name": "X", "password": PASSWORD})
    assert role_of(user, project) is None
    client_for(user).post(link)
    assert role_of(user, project) == Role.VIEWER


def test_another_person_does_not_use_the_link(project: Project, client_for: Callable) -> None:
    link = link_of(InvitationFactory(project=project))
    stranger = UserFactory()
    client = client_for(stranger)
    assert f"You are signed in as {stranger.email}" in client.get(link).text
    client.post(link)
    assert role_of(stranger, project) is None


@pytest.mark.parametrize("fields", [{"expired": True}, {"revoked_at": timezone.now()}])
def test_an_expired_or_revoked_link_does_not_work(project: Project, fields: dict) -> None:
    invitation = InvitationFactory(project=project, **fields)
    link = link_of(invitation)
    assert "This invitation doesn't work" in Client().get(link).text
    assert Client().post(link, {"name": "Mya", "password": PASSWORD}).status_code == 404
    assert Membership.objects.get(project=project).user == invitation.invited_by


def test_nobody_joins_an_archived_project(project: Project, owner: User, client_for: Callable) -> None:
    invitation = InvitationFactory(project=project, invited_by=owner)
    Project.objects.filter(pk=project.pk).update(archived_at=timezone.now())
    assert "This invitation doesn't work" in Client().get(link_of(invitation)).text
    with pytest.raises(roles.ActionRefused):
        roles.sign_up(invitation=invitation, name="Mya", password=PASSWORD, at=timezone.now())
    assert not User.objects.filter(email=invitation.email).exists()
    answers = {"email": "new@example.com", "role": Role.MEMBER}
    page = client_for(owner).post(reverse("accounts:invite", args=[project.pk]), answers).text
    assert "“Default” is archived. Unarchive it before you invite anybody." in page
    assert 'value="new@example.com"' in page
    Project.objects.filter(pk=project.pk).update(archived_at=None)
    assert Client().get(link_of(invitation)).status_code == 200


def test_a_customer_keeps_an_owner_of_its_own(project: Project, owner: User) -> None:
    """An owner from another customer can't take it over."""
    guest = UserFactory(member_of=ProjectFactory())
    mine = Membership.objects.get(project=project, user=owner)
    MembershipFactory(project=project, user=guest)
    for action in (
        lambda: roles.remove(membership=mine, by=guest),
        lambda: roles.remove(membership=mine, by=owner),
        lambda: roles.change_role(membership=mine, role=Role.VIEWER, by=guest),
    ):
        with pytest.raises(roles.ActionRefused, match="needs at least one owner of its own"):
            action()
    MembershipFactory(project=ProjectFactory(customer=project.customer), user=owner)
    roles.remove(membership=mine, by=owner)


def test_a_forged_link_does_not_work(project: Project) -> None:
    link = link_of(InvitationFactory(project=project))
    assert Client().get(link[:-2] + "x/").status_code == 404


def test_a_weak_password_is_explained_and_nothing_is_made(project: Project) -> None:
    link = link_of(InvitationFactory(project=project, email="mya@example.com"))
    page = Client().post(link, {"name": "Mya", "password": "12345678"}).text
    assert "too common" in page
    assert 'value="Mya"' in page
    assert not User.objects.filter(email="mya@example.com").exists()


def test_only_owners_manage_members(project: Project, owner: User, client_for: Callable) -> None:
    member = UserFactory(member_of=project, member_of__role=Role.MEMBER)
    other = MembershipFactory(project=project, role=Role.VIEWER)
    client, stranger = client_for(member), client_for(UserFactory(member_of=ProjectFactory()))
    for name, args in [("invite", [project.pk]), ("role", [other.pk]), ("remove", [other.pk])]:
        url = reverse(f"accounts:{name}", args=args)
        assert client.post(url, {"email": "x@example.com", "role": Role.OWNER}).status_code == 403
        assert stranger.post(url, {"email": "x@example.com", "role": Role.OWNER}).status_code == 404
    assert role_of(other.user, project) == Role.VIEWER
    assert not Invitation.objects.exists()


def test_an_owner_changes_roles_and_removes_members(project: Project, owner: User, client_for: Callable) -> None:
    other = MembershipFactory(project=project, role=Role.VIEWER)
    client = client_for(owner)
    client.post(reverse("accounts:role", args=[other.pk]), {"role": Role.MEMBER})
    assert role_of(other.user, project) == Role.MEMBER
    entry = Activity.objects.get(action="role.change")
    assert (entry.actor, entry.before, entry.after) == (owner, {"role": "viewer"}, {"role": "member"})
    client.post(reverse("accounts:remove", args=[other.pk]))
    assert role_of(other.user, project) is None
    assert client_for(other.user).get("/").status_code == 200


def test_the_last_owner_neither_leaves_nor_is_demoted(project: Project, owner: User, client_for: Callable) -> None:
    mine = Membership.objects.get(user=owner)
    MembershipFactory(project=project, role=Role.MEMBER)
    client = client_for(owner)
    for name, answers in [("remove", {}), ("role", {"role": Role.MEMBER})]:
        page = client.post(reverse(f"accounts:{name}", args=[mine.pk]), answers).text
        assert "“Default” needs at least one owner. Make another member an owner first." in page
    assert role_of(owner, project) == Role.OWNER


def test_a_wrong_address_is_explained(project: Project, owner: User, client_for: Callable) -> None:
    url = reverse("accounts:invite", args=[project.pk])
    client = client_for(owner)
    assert "Enter an e-mail address." in client.post(url, {"email": "", "role": Role.MEMBER}).text
    assert "is already a member of “Default”" in client.post(url, {"email": owner.email, "role": Role.MEMBER}).text
    assert not Invitation.objects.exists()


def test_a_second_invitation_replaces_the_first(project: Project, owner: User) -> None:
    now = timezone.now()
    first = roles.invite(project=project, email="mya@example.com", role=Role.VIEWER, by=owner, at=now)
    second = roles.invite(
        project=project, email="MYA@example.com", role=Role.OWNER, by=owner, at=now + timedelta(days=1)
    )
    assert list(roles.open_invitations()) == [second]
    assert Client().get(link_of(first)).status_code == 404


def test_invitations_of_an_account_are_rate_limited(
    project: Project, owner: User, client_for: Callable, settings: "SettingsWrapper"
) -> None:
    settings.INVITATIONS_PER_HOUR = 2
    now = timezone.now()
    for number in range(2):
        elsewhere = ProjectFactory(customer=project.customer) if number else project
        MembershipFactory(project=elsewhere, user=owner) if number else None
        roles.invite(project=elsewhere, email=f"{number}@example.com", role=Role.VIEWER, by=owner, at=now)
    page = client_for(owner).post(
        reverse("accounts:invite", args=[project.pk]), {"email": "3@example.com", "role": "viewer"}
    )
    assert "Your account has reached its limit of 2 invitations an hour." in page.text
    assert Invitation.objects.count() == 2
    roles.invite(project=project, email="3@example.com", role=Role.VIEWER, by=owner, at=now + timedelta(minutes=61))


@pytest.mark.parametrize("how", ["removed", "demoted", "removed in admin", "demoted in admin", "switched off"])
def test_invitations_of_a_former_owner_are_revoked(project: Project, owner: User, how: str) -> None:
    membership = MembershipFactory(project=project, role=Role.OWNER)
    sent = roles.invite(
        project=project, email="friend@example.com", role=Role.OWNER, by=membership.user, at=timezone.now()
    )
    if how == "removed":
        roles.remove(membership=membership, by=owner)
    elif how == "demoted":
        roles.change_role(membership=membership, role=Role.VIEWER, by=owner)
    elif how == "removed in admin":
        membership.delete()
    elif how == "demoted in admin":
        Membership.objects.filter(pk=membership.pk).update(role=Role.VIEWER)
    else:
        User.objects.filter(pk=membership.user_id).update(is_active=False)
    assert Client().get(link_of(sent)).status_code == 404
    friend = UserFactory(email="friend@example.com")
    with pytest.raises(roles.ActionRefused, match="was used or revoked, or has expired"):
        roles.accept(invitation=sent, user=friend, at=timezone.now())
    entries = Activity.objects.filter(
        action="invitation.revoke", actor=owner, target_name__startswith="friend@example.com"
    )
    assert entries.exists() == (how in ("removed", "demoted"))


@pytest.mark.parametrize("email", ["a@ex\u200bample.com", "a@ex\u200dample.com", "a@ex\u202eample.com"])
def test_an_address_with_invisible_characters_is_not_invited(
    project: Project, owner: User, client_for: Callable, email: str
) -> None:
    client_for(owner).post(reverse("accounts:invite", args=[project.pk]), {"email": email, "role": Role.MEMBER})
    assert not Invitation.objects.exists()


def test_the_page_shows_the_delivery_of_each_invitation(project: Project, owner: User, client_for: Callable) -> None:
    now = timezone.now()
    for state, mail in {
        "Invited": {"sent_at": now},
        "Sending": {},
        "Delayed": {"error": "450 4.2.0 Greylisted", "next_attempt_at": now + timedelta(minutes=4)},
        "Not delivered": {"error": "550 5.1.1 No such user", "failed_at": now},
    }.items():
        email = f"{state.replace(' ', '-').lower()}@example.com"
        InvitationFactory(project=project, email=email, mail=OutgoingMailFactory(recipient=email, **mail))
    page = client_for(owner).get(reverse("project", args=[project.pk])).text
    rows = re.findall(r'<tr id="invitation-.*?</tr>', page, re.DOTALL)
    invitations = {re.search(r"<strong>(.*?)@", row)[1]: " ".join(re.sub("<[^>]*>", " ", row).split()) for row in rows}
    assert "Delayed The mail server hasn't accepted it yet. Next attempt:" in unescape(invitations["delayed"])
    assert "Greylisted" not in page
    assert "Not delivered The mail server refused it: 550 5.1.1 No such user" in invitations["not-delivered"]
    assert " Invited Open until" in invitations["invited"]
    assert " Sending Open until" in invitations["sending"]
    assert {name for name, text in invitations.items() if "Send again" in text} == {
        "invited",
        "delayed",
        "not-delivered",
    }


def test_an_invitation_is_sent_again_with_a_new_link(
    project: Project, owner: User, client_for: Callable[..., Client], settings: "SettingsWrapper"
) -> None:
    old = roles.invite(
        project=project, email="mya@example.com", role=Role.MEMBER, by=owner, at=timezone.now() - timedelta(days=8)
    )
    OutgoingMail.objects.update(failed_at=timezone.now(), error="550 5.1.1 No such user")
    client = client_for(owner)
    page = client.post(reverse("accounts:resend", args=[old.pk]), follow=True).text
    assert "sent the invitation to mya@example.com again." in page
    [message] = sent_mails()
    new = roles.open_invitations().get()
    assert (new.email, new.role) == ("mya@example.com", Role.MEMBER)
    [link] = re.findall(r"https?://[^/]+(/invitations/\S+/)", message.body)  # its timestamp is in seconds
    assert roles.get_invitation(link.split("/")[2], at=timezone.now()) == new
    assert Client().get(link_of(old)).status_code == 404
    assert Client().get(link).status_code == 200

    settings.INVITATIONS_PER_HOUR = 1
    page = client.post(reverse("accounts:resend", args=[new.pk]), follow=True).text
    assert "Your account has reached its limit of 1 invitations an hour." in page
    assert client.post(reverse("accounts:resend", args=[old.pk])).status_code == 404, "it is revoked"


def test_the_email_of_a_revoked_invitation_is_not_sent(project: Project, owner: User, client_for: Callable) -> None:
    invitation = roles.invite(project=project, email="mya@example.com", role=Role.VIEWER, by=owner, at=timezone.now())
    client_for(owner).post(reverse("accounts:revoke", args=[invitation.pk]))
    assert sent_mails() == []


@pytest.mark.django_db(transaction=True)
@pytest.mark.both_databases
def test_when_all_owners_leave_at_once_one_remains(project: Project) -> None:
    owners = [MembershipFactory(project=project, role=Role.OWNER) for _ in range(8)]
    barrier = Barrier(len(owners))

    def leave(membership: Membership) -> bool:
        try:
            barrier.wait()
            roles.remove(membership=membership, by=membership.user)
            return True
        except roles.ActionRefused:
            return False
        finally:
            connections.close_all()

    with ThreadPoolExecutor(len(owners)) as pool:
        left = list(pool.map(leave, owners))
    assert sum(left) == len(owners) - 1
    assert Membership.objects.get(project=project).role == Role.OWNER


@pytest.mark.django_db(transaction=True)
@pytest.mark.both_databases
def test_a_link_used_many_times_at_once_works_once(project: Project) -> None:
    user = UserFactory(email="mya@example.com")
    invitation = InvitationFactory(project=project, email=user.email)
    barrier = Barrier(8)

    def follow(_number: int) -> bool:
        try:
            barrier.wait()
            roles.accept(invitation=invitation, user=user, at=timezone.now())
            return True
        except roles.ActionRefused:
            return False
        finally:
            connections.close_all()

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(follow, range(8))) == 1
    assert Membership.objects.filter(project=project, user=user).count() == 1
    assert Membership.objects.filter(project=project).count() == 2
