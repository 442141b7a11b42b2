"""The activity log: written with each action, visible to those concerned, immutable, and kept for the required time."""

from collections.abc import Callable, Iterator
from datetime import timedelta

import pytest
from allauth.mfa.recovery_codes.internal.auth import RecoveryCodes
from allauth.mfa.totp.internal.auth import TOTP, generate_totp_secret
from django.db import IntegrityError, connection, transaction
from django.test import Client
from django.urls import reverse
from django.utils import timezone
from pytest_django import Settings

from billing.wallet import grant_credits
from cng_portal.accounts.models import Project, Role, User
from cng_portal.activity import services as activity
from cng_portal.activity.models import Activity, to_text
from cng_portal.common.responses import cell, csv_response
from snapshots import services
from snapshots.errors import NameTaken
from tests.accounts.test_sign_in import PASSWORD, sign_in
from tests.factories import ProjectFactory, SnapshotFactory, UserFactory
from tests.log_events import log_events

pytestmark = pytest.mark.django_db


@pytest.fixture
def project() -> Project:
    return ProjectFactory(name="Default")


@pytest.fixture
def owner(project: Project) -> User:
    return UserFactory(name="Aye", member_of=project)


def entries(days_ago: list[float]) -> list[Activity]:
    now = timezone.now()
    return Activity.objects.bulk_create(
        Activity(action="user.sign_in", actor_name="Aye", at=now - timedelta(days=days)) for days in days_ago
    )


def raw(sql: str) -> None:
    with connection.cursor() as cursor:
        cursor.execute(sql)


@pytest.mark.both_databases
def test_an_entry_is_never_changed_and_not_deleted_before_it_is_a_year_old(owner: User) -> None:
    entry = activity.record(action="user.change", actor=owner, target=owner, before={"name": "A"}, after={"name": "B"})
    old, almost = entries([365.01, 364.99])
    for change in (
        lambda: Activity.objects.update(action="role.change"),
        lambda: Activity.objects.filter(pk=entry.pk).update(at=timezone.now() - timedelta(days=999)),
        lambda: Activity.objects.filter(pk=old.pk).update(address=None),
        lambda: Activity.objects.filter(pk=entry.pk).delete(),
        lambda: Activity.objects.filter(pk=almost.pk).delete(),
        lambda: entry.save(),
        lambda: raw("UPDATE activity_activity SET actor_name = ''"),
        lambda: raw("DELETE FROM activity_activity"),
    ):
        with pytest.raises(IntegrityError, match="never changed, and not deleted before"), transaction.atomic():
            change()
    assert Activity.objects.count() == 3
    assert Activity.objects.get(pk=entry.pk).action == "user.change"
    Activity.objects.filter(pk=old.pk).delete()
    assert Activity.objects.count() == 2


@pytest.mark.both_databases
def test_old_entries_are_deleted_in_batches_and_the_deletion_is_logged(
    owner: User, settings: Settings, monkeypatch: pytest.MonkeyPatch, client_for: Callable[..., Client]
) -> None:
    now = timezone.now()
    activity.record(action="user.change", actor=owner, target=owner)
    entries([1, 364, 399, 401.1, 402, 403, 404, 500])
    assert activity.delete_old(now=now) == 0, "without the setting they stay for good"
    settings.ACTIVITY_KEPT_DAYS = 400
    monkeypatch.setattr(activity, "BATCH_SIZE", 2)
    oldest = Activity.objects.earliest("at").at

    assert activity.delete_old(now=now) == 5
    assert Activity.objects.filter(action="user.sign_in").count() == 3
    deletions = Activity.objects.filter(action="activity.delete_old").order_by("at")
    assert [entry.after["entries"] for entry in deletions] == [2, 2, 1]
    assert deletions[0].after["from"] == oldest.isoformat()
    assert deletions[2].after["until"] < (now - timedelta(days=400)).isoformat()
    assert {(entry.actor, entry.customer) for entry in deletions} == {(None, None)}

    assert activity.delete_old(now=now) == 0
    assert Activity.objects.filter(action="activity.delete_old").count() == 3, "nothing is nothing to tell of"
    page = client_for(owner).get(reverse("activity:log")).text
    assert "Profile changed" in page
    assert "Entries are deleted after 400 days." in page
    admin = client_for(UserFactory(admin=True)).get("/admin/activity/activity/").text
    assert "Old entries of the activity log deleted" in admin


def test_a_large_backlog_of_old_entries_is_left_for_the_next_run(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings.ACTIVITY_KEPT_DAYS = 365
    monkeypatch.setattr(activity, "BATCH_SIZE", 2)
    monkeypatch.setattr(activity, "BATCHES", 2)
    entries([400] * 5)
    now = timezone.now()
    assert [activity.delete_old(now=now) for _ in range(3)] == [4, 1, 0]


def test_a_sign_in_after_the_log_has_expired_is_notified(project: Project, settings: Settings) -> None:
    settings.ACTIVITY_KEPT_DAYS = 365
    long_ago = timezone.now() - timedelta(days=500)
    user = UserFactory(email="aye@example.com", password=PASSWORD, member_of=project, date_joined=long_ago)
    sign_in(Client(), user.email)
    assert user.notifications.get().title.startswith("New sign-in from")


@pytest.mark.skipif(connection.vendor != "sqlite", reason="a way around triggers that only SQLite has")
def test_an_entry_is_not_replaced_either(owner: User) -> None:
    activity.record(action="user.change", actor=owner, target=owner)
    columns = [field.column for field in Activity._meta.concrete_fields]
    values = ["'role.change'" if column == "action" else column for column in columns]
    forged = f"REPLACE INTO activity_activity ({', '.join(columns)}) SELECT {', '.join(values)} FROM activity_activity"
    with pytest.raises(IntegrityError, match="never changed, and not deleted before"), transaction.atomic():
        connection.cursor().execute(forged)
    assert Activity.objects.get().action == "user.change"


def test_a_rolled_back_action_leaves_no_entry(owner: User) -> None:
    with pytest.raises(ZeroDivisionError), transaction.atomic():
        activity.record(action="user.change", actor=owner, target=owner)
        raise ZeroDivisionError
    assert not Activity.objects.exists()


def test_an_entry_names_its_target_project_and_customer(owner: User, project: Project) -> None:
    snapshot = SnapshotFactory(name="nightly", volume__project=project)
    entry = activity.record(action="snapshot.rename", actor=None, target=snapshot)
    assert (entry.project_id, entry.customer_id) == (project.pk, project.customer_id)
    assert (entry.target_kind, entry.target_id, entry.target_name) == ("snapshot", str(snapshot.pk), "nightly")


def test_an_action_that_no_app_has_registered_is_refused() -> None:
    with pytest.raises(ValueError, match="No app has registered the action “snapshot.eat”"):
        activity.record(action="snapshot.eat", actor=None)
    assert not Activity.objects.exists()


def test_a_role_of_a_guest_is_in_the_log_of_the_projects_customer_alone(
    owner: User, project: Project, client_for: Callable[..., Client]
) -> None:
    guest = UserFactory(name="Guest", member_of=ProjectFactory())
    entry = activity.record(action="role.change", actor=owner, target=guest, project=project, after={"role": "viewer"})
    assert entry.customer == project.customer
    assert "Role changed" in client_for(owner).get(reverse("activity:log")).text
    assert "<strong>Role changed" not in client_for(guest).get(reverse("activity:log")).text


def test_everybody_sees_their_projects_and_owners_the_whole_account(
    owner: User, project: Project, client_for: Callable[..., Client]
) -> None:
    viewer = UserFactory(member_of=project, member_of__role=Role.VIEWER)
    activity.record(action="snapshot.delete", actor=owner, target=SnapshotFactory(name="mine", volume__project=project))
    hidden = ProjectFactory(customer=project.customer)
    activity.record(
        action="snapshot.delete", actor=owner, target=SnapshotFactory(name="theirs", volume__project=hidden)
    )
    activity.record(action="snapshot.delete", actor=None, target=SnapshotFactory(name="foreign"))

    def seen_by(user: User) -> set[str]:
        page = client_for(user).get(reverse("activity:log")).text
        return {name for name in ("mine", "theirs", "foreign") if name in page}

    assert seen_by(owner) == {"mine", "theirs"}
    assert seen_by(viewer) == {"mine"}
    assert seen_by(UserFactory(member_of=ProjectFactory())) == set()


def test_the_log_is_searched_and_filtered(owner: User, project: Project, client_for: Callable[..., Client]) -> None:
    for name in ("alpha", "beta"):
        activity.record(
            action="snapshot.delete", actor=owner, target=SnapshotFactory(name=name, volume__project=project)
        )
    activity.record(action="role.change", actor=owner, target=owner, project=project, after={"role": "member"})
    client = client_for(owner)

    def rows(**query: str) -> list[str]:
        return [row.target_name for row in client.get(reverse("activity:log"), query).context["rows"]]

    assert rows(q="ALPH") == ["alpha"]
    assert rows(action="role.change") == ["Aye"]
    assert len(rows(project=str(project.pk))) == 3
    assert "No entries match" in client.get(reverse("activity:log"), {"q": "gamma"}).text
    assert len(rows(project="nonsense", action="nonsense", after="nonsense")) == 3


@pytest.mark.parametrize("cursor", ["nonsense", "\0", "9~9", "00000000-0000-0000-0000-000000000000~9999-99-99"])
def test_unknown_pages_and_filters_are_reported(owner: User, client_for: Callable[..., Client], cursor: str) -> None:
    activity.record(action="user.change", actor=owner, target=owner, after={"name": "A"})
    client = client_for(owner)
    for direction in ("after", "before"):
        page = client.get(reverse("activity:log"), {direction: cursor})
        assert len(page.context["rows"]) == 1
        assert "That page doesn't exist. This is the first one." in page.text
    page = client.get(reverse("activity:log"), {"action": "nonsense"}).text
    assert "Filters that don't exist were ignored:" in page and "That page doesn" not in page
    assert "ignored" not in client.get(reverse("activity:log"), {"action": "user.change"}).text


def test_pages_follow_each_other_without_gaps_and_lead_back(owner: User, client_for: Callable[..., Client]) -> None:
    for number in range(120):
        activity.record(action="user.change", actor=owner, target=owner, after={"name": str(number)})
    client, url, forward, back = client_for(owner), reverse("activity:log"), [], []
    while url:
        page = client.get(url).context
        forward.append([row.after["name"] for row in page["rows"]])
        url, previous = page["next_url"], page["previous_url"]
    while previous:
        page = client.get(previous).context
        back.append([row.after["name"] for row in page["rows"]])
        previous = page["previous_url"]
    assert sum(forward, []) == [str(number) for number in reversed(range(120))]
    assert back == [forward[1], forward[0]]
    newest = Activity.objects.order_by("-at").first()
    beyond = client.get(reverse("activity:log"), {"before": str(newest.pk)}).context
    assert [row.after["name"] for row in beyond["rows"]] == forward[0]


def test_the_csv_has_everything_and_no_formula(
    owner: User, project: Project, client_for: Callable[..., Client]
) -> None:
    snapshot = SnapshotFactory(name="=1+1", volume__project=project)
    activity.record(
        action="snapshot.rename", actor=owner, target=snapshot, before={"name": "a"}, after={"name": "=1+1"}
    )
    text = client_for(owner).get(reverse("activity:csv")).getvalue().decode()
    assert "Snapshot renamed" in text
    assert "'=1+1" in text
    assert "name: a → =1+1" in text


@pytest.mark.parametrize(
    "text",
    [
        "=1",
        "+1",
        "-1",
        "@SUM(1)",
        "\t=1",
        "\r=1",
        "\n=1",
        "＝1",
        "＋1",
        "－1",
        "＠SUM(1)",
        ";=1",
        ",=1",
        "|=1",
        ' ;"=1',
    ],
)
def test_no_cell_begins_a_formula(text: str) -> None:
    assert cell(text) == f"'{text}"
    assert (cell("1=1"), cell(-1)) == ("1=1", -1)


def test_an_export_that_fails_is_no_shorter_file() -> None:
    """The web server ends the response without its last chunk, and the browser reports a failed download."""

    def rows() -> Iterator[list[object]]:
        yield ["first"]
        raise OverflowError

    with pytest.raises(OverflowError):
        list(csv_response("names", ["name"], rows()))


def test_sign_ins_are_logged_and_a_new_device_is_notified(project: Project) -> None:
    user = UserFactory(email="aye@example.com", password=PASSWORD, member_of=project)
    firefox, phone = (Client(headers={"User-Agent": agent}) for agent in ("Gecko Firefox/1 Linux", "Safari/1 iPhone"))
    sign_in(firefox, user.email, "wrong")
    sign_in(firefox, user.email)
    assert not user.notifications.exists()
    sign_in(phone, user.email)
    assert user.notifications.get().title == "New sign-in from Safari on iPhone"
    actions = Activity.objects.filter(actor=user).order_by("at").values_list("action", flat=True)
    assert list(actions) == ["user.sign_in_failed", "user.sign_in", "user.sign_in"]
    assert Activity.objects.filter(action="user.sign_in").first().address == "127.0.0.1"
    page = phone.get(reverse("accounts:sign_ins")).text
    assert page.count("Firefox on Linux") == 2


def test_every_authentication_method_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    user = UserFactory(email="aye@example.com", password=PASSWORD)
    TOTP.activate(user, generate_totp_secret())
    code, *_others = RecoveryCodes.activate(user).get_unused_codes()
    client = Client()
    client.post(reverse("account_reset_password"), {"email": user.email})
    sign_in(client, user.email, "wrong")
    sign_in(client, user.email)
    client.post(reverse("mfa_authenticate"), {"code": "000000"})
    client.post(reverse("mfa_authenticate"), {"credential": '{"id": 1}'})
    client.post(reverse("mfa_authenticate"), {"code": code})
    client.post(reverse("account_reauthenticate"), {"password": PASSWORD})
    client.post(reverse("account_email"), {"action_add": "", "email": "new@example.com"})
    answers = {"oldpassword": "wrong", "password1": "a quite new one 1", "password2": "a quite new one 1"}
    client.post(reverse("account_change_password"), answers)
    logged = [
        (entry.action.removeprefix("user."), to_text(entry.after.get("factors") or entry.after.get("factor")))
        for entry in Activity.objects.order_by("at")
    ]
    assert logged == [
        ("request_password_reset", ""),
        ("sign_in_failed", "password"),
        ("sign_in_failed", "authenticator app"),
        ("sign_in_failed", "passkey"),
        ("sign_in", "password, recovery code"),
        ("reauthenticate", "password"),
        ("request_email_change", ""),
        ("sign_in_failed", "password"),
    ]

    for number in range(7):
        sign_in(Client(REMOTE_ADDR=f"192.0.2.{number}"), "nobody@example.com", PASSWORD)
    Client().post(reverse("mfa_login_webauthn"), {"credential": '{"id": 1}'})
    assert log_events(caplog).count("sign_in.unknown_email") == 5
    assert {"sign_in.unknown_passkey", "sign_in.rate_limited"} <= set(log_events(caplog))
    assert "nobody@example.com" not in caplog.text and PASSWORD not in caplog.text


def test_changes_by_administrators_are_logged_with_their_values(
    owner: User, project: Project, client_for: Callable[..., Client]
) -> None:
    admin = UserFactory(admin=True, name="Support")
    answers = {
        "name": "Renamed",
        "snapshot_quota": 5,
        "snapshot_gb_quota": -1,
        "volume_quota": -1,
        "volume_gb_quota": -1,
        "memberships-TOTAL_FORMS": 1,
        "memberships-INITIAL_FORMS": 1,
        "memberships-0-id": owner.memberships.get().pk,
        "memberships-0-project": project.pk,
        "memberships-0-user": owner.pk,
        "memberships-0-role": Role.OWNER,
    }
    assert client_for(admin).post(f"/admin/accounts/project/{project.pk}/change/", answers).status_code == 302
    entry = Activity.objects.get(action="admin.change")
    assert (entry.actor, entry.project, entry.customer) == (admin, project, project.customer)
    assert (entry.before, entry.after) == (
        {"name": "Default", "snapshot_quota": -1},
        {"name": "Renamed", "snapshot_quota": 5},
    )
    assert "Support" in client_for(owner).get(reverse("activity:log")).text


def test_administrators_cannot_leave_a_project_without_an_owner(
    owner: User, project: Project, client_for: Callable[..., Client]
) -> None:
    answers = {
        "name": "Default",
        "snapshot_quota": -1,
        "snapshot_gb_quota": -1,
        "volume_quota": -1,
        "volume_gb_quota": -1,
        "memberships-TOTAL_FORMS": 1,
        "memberships-INITIAL_FORMS": 1,
        "memberships-0-id": owner.memberships.get().pk,
        "memberships-0-project": project.pk,
        "memberships-0-user": owner.pk,
        "memberships-0-role": Role.VIEWER,
    }
    page = client_for(UserFactory(admin=True)).post(f"/admin/accounts/project/{project.pk}/change/", answers).text
    assert "“Default” needs at least one owner." in page
    assert owner.memberships.get().role == Role.OWNER


def test_requests_on_a_snapshot_are_logged(owner: User, project: Project) -> None:
    snapshot = SnapshotFactory(name="nightly", volume__project=project)
    services.rename_snapshot(snapshot=snapshot, user=owner, name="weekly")
    services.request_verification(snapshot=snapshot, user=owner)
    services.request_deletion(snapshot=SnapshotFactory(volume__project=project), user=owner, even_if_last=True)
    with pytest.raises(NameTaken):
        services.rename_snapshot(snapshot=snapshot, user=owner, name="")
    log = Activity.objects.filter(actor=owner, project=project).order_by("at")
    assert list(log.values_list("action", flat=True)) == ["snapshot.rename", "snapshot.verify", "snapshot.delete"]
    assert (log[0].before, log[0].after) == ({"name": "nightly"}, {"name": "weekly"})


def test_changes_of_credits_and_prices_are_logged(project: Project) -> None:
    admin = UserFactory(admin=True)
    fields = {"customer": project.customer, "amount_micro": 5_000_000, "reason": "Sorry for the outage", "by": admin}
    for _ in range(2):
        grant_credits(**fields, key="once")
    entry = Activity.objects.get(action="wallet.move")
    assert (entry.customer, entry.actor) == (project.customer, admin)
    assert entry.after["reason"] == "Sorry for the outage"
