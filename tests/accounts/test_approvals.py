"""A customer may have another owner approve what one stolen password must not be enough for."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from html import unescape

import pytest
import time_machine
from django.core.exceptions import PermissionDenied
from django.db import IntegrityError, transaction
from django.test import Client
from django.urls import reverse

from cng_portal.accounts import approvals, roles
from cng_portal.accounts.models import Approval, Customer, Membership, Project, Role, User
from cng_portal.activity.models import Activity
from cng_portal.mail.models import OutgoingMail
from cng_portal.notifications.models import Notification
from snapshots.errors import InvalidState
from tests.factories import ApprovalFactory, InvitationFactory, MembershipFactory, ProjectFactory, UserFactory
from tests.snapshots.test_races import TAKERS, all_at_once

pytestmark = pytest.mark.django_db
NOW = datetime(2040, 3, 5, 10, tzinfo=UTC)
PAGE = "/profile/approvals/"
OPEN, APPROVED, REJECTED, WITHDRAWN, EXPIRED = "", "approve", "reject", "withdraw", "expire"


@pytest.fixture(autouse=True)
def now() -> object:
    with time_machine.travel(NOW, tick=False) as traveller:
        yield traveller


@pytest.fixture
def project() -> Project:
    return ProjectFactory(customer__needs_approval=True)


@pytest.fixture
def owner(project: Project) -> User:
    return UserFactory(member_of=project, name="Aung")


@pytest.fixture
def second(project: Project) -> User:
    return UserFactory(member_of=project, name="Thiri")


@pytest.fixture
def member(project: Project, owner: User, second: User) -> Membership:
    return MembershipFactory(project=project, role=Role.MEMBER, user__customer=project.customer)


def ask(member: Membership, owner: User, role: str = Role.OWNER) -> Approval:
    roles.change_role(membership=member, role=role, by=owner)
    return Approval.objects.get(outcome=OPEN)


def decide(approval: Approval, outcome: str, by: User, *, after: timedelta = timedelta()) -> Approval:
    return approvals.decide(approval=approval, outcome=outcome, by=by, at=NOW + after)


def role_of(member: Membership) -> str:
    return Membership.objects.get(pk=member.pk).role


def test_it_is_off_by_default(client_for: Callable[..., Client]) -> None:
    project = ProjectFactory()
    owner, member = UserFactory(member_of=project), MembershipFactory(project=project, role=Role.MEMBER)
    roles.change_role(membership=member, role=Role.OWNER, by=owner)
    assert role_of(member) == Role.OWNER
    assert not Approval.objects.exists()
    assert "It is off" in client_for(owner).get(PAGE).text


def test_an_approved_request_is_done_in_the_name_of_who_asked(member: Membership, owner: User, second: User) -> None:
    approval = ask(member, owner)
    assert role_of(member) == Role.MEMBER
    assert (approval.requested_by, approval.expires_at) == (owner, NOW + timedelta(hours=72))
    decide(approval, APPROVED, second)
    assert role_of(member) == Role.OWNER
    assert set(Activity.objects.values_list("action", "actor")) == {
        ("approval.request", owner.pk),
        ("approval.approve", second.pk),
        ("role.change", owner.pk),
    }


@pytest.mark.parametrize("outcome", [REJECTED, WITHDRAWN])
def test_a_rejected_or_withdrawn_request_does_nothing(
    member: Membership, owner: User, second: User, outcome: str
) -> None:
    approval = ask(member, owner)
    decide(approval, outcome, second if outcome == REJECTED else owner)
    for by in (owner, second):
        with pytest.raises((approvals.ActionRefused, PermissionDenied)):
            decide(approval, APPROVED, by)
    assert role_of(member) == Role.MEMBER
    assert ask(member, owner).pk != approval.pk, "it can be asked for again"


def test_an_expired_request_does_nothing(member: Membership, owner: User, second: User) -> None:
    approval = ask(member, owner)
    with pytest.raises(approvals.ActionRefused, match="no longer open"):
        decide(approval, APPROVED, second, after=timedelta(hours=72))
    assert role_of(member) == Role.MEMBER
    with time_machine.travel(NOW + timedelta(hours=72), tick=False):
        assert ask(member, owner).pk != approval.pk
    approval.refresh_from_db()
    assert approval.outcome == EXPIRED
    decide(ask(member, owner), APPROVED, second, after=timedelta(hours=71))


def test_who_asked_is_told_once_that_nobody_decided(member: Membership, owner: User, second: User) -> None:
    approval = ask(member, owner)
    approvals.expire_due(now=NOW + timedelta(hours=71))
    assert not Notification.objects.filter(user=owner).exists()
    for _time in range(2):
        approvals.expire_due(now=NOW + timedelta(hours=72))
    approval.refresh_from_db()
    assert (approval.outcome, approval.decided_by) == (EXPIRED, None)
    assert Notification.objects.get(user=owner).title == "Nobody decided your request"


def test_nobody_approves_their_own_request_and_no_member_does(member: Membership, owner: User, second: User) -> None:
    approval = ask(member, owner)
    stranger = UserFactory(member_of=ProjectFactory())
    guest = UserFactory(member_of=ProjectFactory())  # An owner of a project here, but another customer's user.
    MembershipFactory(project=member.project, user=guest, role=Role.OWNER)
    for user in (owner, member.user, stranger, guest):
        for outcome in (APPROVED, REJECTED):
            with pytest.raises(PermissionDenied):
                decide(approval, outcome, user)
    with pytest.raises(PermissionDenied):
        decide(approval, WITHDRAWN, second)
    assert role_of(member) == Role.MEMBER


def test_a_second_request_is_the_first_one_and_another_one_is_refused(
    member: Membership, owner: User, second: User
) -> None:
    approval = ask(member, owner)
    assert ask(member, second).pk == approval.pk
    assert approval.requested_by == owner
    assert Notification.objects.filter(key__startswith="approval").count() == 1
    viewer = MembershipFactory(project=member.project)
    ask_first = Approval.objects.filter(target_id=str(viewer.pk))
    roles.change_role(membership=viewer, role=Role.VIEWER, by=owner)
    with pytest.raises(approvals.ActionRefused, match="Something else is waiting"):
        roles.change_role(membership=viewer, role=Role.MEMBER, by=second)
    assert ask_first.get().role == Role.VIEWER


def test_what_the_requester_may_no_longer_do_is_not_done(member: Membership, owner: User, second: User) -> None:
    approval = ask(member, owner)
    Membership.objects.filter(user=owner).update(role=Role.VIEWER)
    with pytest.raises(approvals.ActionRefused, match="may no longer do this"):
        decide(approval, APPROVED, second)
    approval.refresh_from_db()
    assert (approval.outcome, role_of(member)) == (OPEN, Role.MEMBER)


def test_what_is_gone_meanwhile_is_not_done(member: Membership, owner: User, second: User) -> None:
    approval = ask(member, owner)
    roles.remove(membership=member, by=owner)
    with pytest.raises(approvals.ActionRefused, match="no longer a member"):
        decide(approval, APPROVED, second)


def test_an_approval_is_good_for_its_own_action_only(member: Membership, owner: User, second: User) -> None:
    approval = ask(member, owner)
    other = MembershipFactory(project=member.project, role=Role.MEMBER)
    with pytest.raises(ValueError, match="something else"):
        roles.change_role(membership=other, role=Role.OWNER, by=owner, approval=approval)


@pytest.mark.both_databases
@pytest.mark.django_db(transaction=True)
def test_of_twenty_decisions_at_once_one_counts(member: Membership, owner: User, second: User) -> None:
    approval = ask(member, owner)

    def act(number: int) -> None:
        try:
            decide(approval, APPROVED if number % 2 else REJECTED, second)
        except approvals.ActionRefused as refusal:
            raise InvalidState(str(refusal)) from refusal

    assert all_at_once(act) == {"done": 1, "InvalidState": TAKERS - 1}
    approval.refresh_from_db()
    assert (role_of(member) == Role.OWNER) is (approval.outcome == APPROVED)
    assert Activity.objects.filter(action="role.change").count() == (approval.outcome == APPROVED)


@pytest.mark.parametrize(
    "values",
    [
        {"outcome": APPROVED, "decided_at": NOW},
        {"outcome": APPROVED, "decided_at": NOW, "decided_by": "requested_by"},
        {"outcome": REJECTED, "decided_at": NOW, "decided_by": "requested_by"},
        {"outcome": APPROVED, "decided_at": NOW + timedelta(hours=72), "decided_by": "second"},
        {"outcome": APPROVED, "decided_by": "second"},
        {"outcome": WITHDRAWN, "decided_at": NOW, "decided_by": "second"},
        {"outcome": EXPIRED, "decided_at": NOW, "decided_by": "second"},
        {"decided_by": "second"},
        {"decided_at": NOW},
    ],
)
def test_the_database_holds_who_decides(project: Project, second: User, values: dict[str, object]) -> None:
    approval = ApprovalFactory(project=project)
    users = {"second": second, "requested_by": approval.requested_by}
    if "decided_by" in values:
        values = values | {"decided_by": users[str(values["decided_by"])]}
    with pytest.raises(IntegrityError), transaction.atomic():
        Approval.objects.filter(pk=approval.pk).update(**values)
    Approval.objects.filter(pk=approval.pk).update(outcome=APPROVED, decided_at=NOW, decided_by=second)


def test_the_database_holds_one_open_request_of_a_kind(project: Project) -> None:
    ApprovalFactory(project=project)
    with pytest.raises(IntegrityError), transaction.atomic():
        ApprovalFactory(project=project)


def test_no_other_way_makes_or_removes_an_owner(member: Membership, owner: User, second: User) -> None:
    project = member.project
    with pytest.raises(approvals.ActionRefused, match="Invite them as a member"):
        roles.invite(project=project, email="new@example.com", role=Role.OWNER, by=owner, at=NOW)
    roles.invite(project=project, email="new@example.com", role=Role.MEMBER, by=owner, at=NOW)
    of_second = Membership.objects.get(user=second)
    for by in (owner, second):
        with pytest.raises(approvals.ActionRefused, match="Another owner has to approve"):
            roles.remove(membership=of_second, by=by)
    roles.change_role(membership=of_second, role=Role.MEMBER, by=owner)
    assert role_of(of_second) == Role.OWNER
    third = UserFactory(member_of=project)
    decide(Approval.objects.get(outcome=OPEN), APPROVED, third)
    assert role_of(of_second) == Role.MEMBER
    roles.change_role(membership=member, role=Role.VIEWER, by=owner)
    assert role_of(member) == Role.VIEWER, "who isn't an owner and doesn't become one needs nobody"


def test_an_earlier_invitation_makes_no_owner(owner: User, second: User, project: Project) -> None:
    invitation = InvitationFactory(project=project, invited_by=owner, role=Role.OWNER)
    invited = UserFactory(email=invitation.email)
    assert roles.accept(invitation=invitation, user=invited, at=NOW).role == Role.MEMBER


def set_needed(customer: Customer, needed: bool, by: User) -> bool:
    return approvals.set_needed(customer=customer, needed=needed, by=by, at=NOW).needs_approval


def test_turning_it_on_needs_two_owners_and_turning_it_off_the_second_one(client_for: Callable[..., Client]) -> None:
    project = ProjectFactory()
    owner = UserFactory(member_of=project)
    with pytest.raises(approvals.ActionRefused, match="one owner only"):
        set_needed(project.customer, True, owner)
    second = UserFactory(member_of=project)
    member = UserFactory(member_of=project, member_of__role=Role.MEMBER)
    with pytest.raises(PermissionDenied):
        set_needed(project.customer, True, member)
    assert set_needed(project.customer, True, owner)
    assert set_needed(project.customer, False, owner), "it waits"
    decide(Approval.objects.get(), APPROVED, second)
    assert not Customer.objects.get(pk=project.customer_id).needs_approval
    assert Activity.objects.filter(action="approval.change").count() == 2


def test_owners_are_notified_in_the_bell_and_by_email(member: Membership, owner: User, second: User) -> None:
    approval = ask(member, owner)
    notice = Notification.objects.get(user=second)
    assert notice.title == "Aung needs your approval"
    assert "change the role to Owner" in notice.text and notice.url == PAGE
    assert OutgoingMail.objects.filter(recipient=second.email).exists()
    assert not Notification.objects.exclude(user=second).exists()
    decide(approval, REJECTED, second)
    assert Notification.objects.get(user=owner).title == "Thiri rejected your request"


def test_the_page_lists_requests_and_decides_them(
    member: Membership, owner: User, second: User, client_for: Callable[..., Client]
) -> None:
    response = client_for(owner).post(reverse("accounts:role", args=[member.pk]), {"role": "owner"}, follow=True)
    assert "Another owner has to approve it within 72 hours" in response.text
    approval = Approval.objects.get()
    url = reverse("accounts:decide_approval", args=[approval.pk])
    mine, theirs = client_for(owner).get(PAGE).text, client_for(second).get(PAGE).text
    assert 'value="withdraw"' in mine and 'value="approve"' not in mine
    assert 'value="approve"' in theirs and 'value="reject"' in theirs
    assert client_for(owner).post(url, {"outcome": "approve"}).status_code == 403
    assert client_for(second).post(url, {"outcome": "expire"}).status_code == 400
    assert client_for(second).post(url).status_code == 400
    page = client_for(second).post(url, {"outcome": "approve"}, follow=True).text
    assert "You approved the request, and it was carried out." in page and "by Thiri" in page
    assert role_of(member) == Role.OWNER
    page = client_for(second).post(url, {"outcome": "reject"}, follow=True).text
    assert "no longer open" in page


def test_a_stranger_and_a_member_see_none_of_it(
    member: Membership, owner: User, client_for: Callable[..., Client]
) -> None:
    url = reverse("accounts:decide_approval", args=[ask(member, owner).pk])
    for user in (UserFactory(member_of=ProjectFactory()), member.user):
        assert client_for(user).post(url, {"outcome": "reject"}).status_code == 404
        assert "Nothing is waiting for approval" in client_for(user).get(PAGE).text


def test_the_setting_is_changed_on_the_page(
    project: Project, owner: User, second: User, client_for: Callable[..., Client]
) -> None:
    page = client_for(owner).post(PAGE, {"needed": "no"}, follow=True).text
    assert "Another owner has to approve it" in page and "Turn off the approval by a second owner" in unescape(page)
    project.customer.refresh_from_db()
    assert project.customer.needs_approval
    url = reverse("accounts:decide_approval", args=[Approval.objects.get().pk])
    page = client_for(second).post(url, {"outcome": "approve"}, follow=True).text
    assert "It is off" in page
    page = client_for(second).post(PAGE, {"needed": "yes"}, follow=True).text
    assert "From now on, another owner has to approve" in page and "It is on" in page
    member = UserFactory(member_of=project, member_of__role=Role.MEMBER)
    assert client_for(member).post(PAGE, {"needed": "no"}).status_code == 403
