"""The wizard: permissions, valid answers, and changes between steps."""

from datetime import timedelta
from html import unescape
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from django.db import connection
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from billing.models import Package, PriceVersion
from billing.wallet import buy_credits
from cng_portal.accounts.models import Membership, Role
from cng_portal.common.templatetags.portal import day
from cng_portal.inventory.models import Location, Volume
from snapshots import limits
from snapshots.models import Draft, Snapshot, State
from snapshots.wizard import wizard
from snapshots.wizard.steps import MAX_DRAFTS
from tests.factories import (
    DraftFactory,
    LocationFactory,
    MembershipFactory,
    ProjectFactory,
    SnapshotFactory,
    UserFactory,
    VolumeFactory,
)
from tests.snapshots.disks import content, put_volume, run_active_operations, sell_everywhere

pytestmark = pytest.mark.django_db

HTMX = {"HX-Request": "true"}
NOBODYS_ID = "00000000-0000-4000-8000-000000000000"
SLUGS = ["location", "project", "volume", "name", "review"]


@pytest.fixture
def member() -> Membership:
    member = MembershipFactory(project__customer__postpaid=True, project__name="Default")
    member.user.customer = member.project.customer
    member.user.save()
    return member


@pytest.fixture
def volume(storage_root: Path, member: Membership) -> Volume:
    volume = VolumeFactory(project=member.project, size_gb=50, name="db-01-data")
    sell_everywhere()
    put_volume(storage_root, volume, content(b"bytes"))
    return volume


@pytest.fixture
def client(client_for: Any, member: Membership) -> Client:
    return client_for(member.user)


def url(draft: Draft, step: str) -> str:
    return wizard.url(draft, step)


def draft_at(step: str, volume: Volume, user: Any) -> Draft:
    """Return a draft with the answers before `step`."""
    draft = wizard.start(user, source=volume)
    if step == "review":
        draft.name = "nightly"
    for later in SLUGS[SLUGS.index(step) :]:
        if later in ("project", "volume", "location"):
            setattr(draft, later, None)
    draft.save()
    return draft


def confirm(client: Client, draft: Draft, **fields: Any) -> Any:
    data = {"billing_cycle": "hourly", "shown_hourly_micro": 20_000_000} | fields
    return client.post(url(draft, "review"), data)


def test_the_wizard_leads_from_a_location_to_a_ready_snapshot(
    client: Client, member: Membership, volume: Volume
) -> None:
    answers = {
        "location": volume.location_id,
        "project": member.project.pk,
        "volume": volume.pk,
        "name": "  Before update ",
    }
    step_url = reverse("snapshots:new")
    headings = ["Choose a Location", "Assign to a Project", "Choose Block Storage", "Choose Snapshot Name"]
    for heading, (field, answer) in zip(headings, answers.items(), strict=True):
        assert heading in client.get(step_url).text
        response = client.post(step_url, {field: answer})
        assert response.status_code == 302
        step_url = response["Location"]
    page = client.get(step_url).text.replace("\N{NO-BREAK SPACE}", " ")
    assert "Create Snapshot" in page and "Before update" in page
    for word in ("Hourly", "Fixed Prorata", "Price Summary", "K 20.00", "50 GB", "50 GB × K 0.4000 = K 20.00 an hour"):
        assert word in page, word
    response = client.post(step_url, {"billing_cycle": "hourly", "shown_hourly_micro": 20_000_000})
    snapshot = Snapshot.objects.get()
    assert response["Location"] == reverse("snapshots:snapshot", args=[snapshot.pk]) + "#heading"
    assert (snapshot.name, snapshot.state) == ("Before update", State.PENDING)
    run_active_operations()
    snapshot.refresh_from_db()
    assert snapshot.state == State.READY


def test_looking_at_the_first_step_leaves_no_draft(client: Client, volume: Volume) -> None:
    client.get(reverse("snapshots:new"))
    assert not Draft.objects.exists()


@pytest.mark.parametrize("step", SLUGS)
def test_the_fragment_is_the_same_as_in_the_page(client: Client, member: Membership, volume: Volume, step: str) -> None:
    draft = draft_at(step, volume, member.user)
    page = client.get(url(draft, step)).text
    fragment = client.get(url(draft, step), headers=HTMX).text
    assert "<html" in page and "<html" not in fragment

    def without_token(text: str) -> str:
        return " ".join(line for line in text.split("\n") if "csrfmiddlewaretoken" not in line and line.strip())

    assert " ".join(without_token(fragment).split()) in " ".join(without_token(page).split())


@pytest.mark.parametrize("step", SLUGS)
def test_a_stranger_finds_no_draft(client_for: Any, member: Membership, volume: Volume, step: str) -> None:
    stranger = MembershipFactory().user
    draft = draft_at(step, volume, member.user)
    assert client_for(stranger).get(url(draft, step)).status_code == 404
    assert client_for(stranger).post(url(draft, step), {}).status_code == 404
    assert client_for(stranger).get(reverse("snapshots:check_name", args=[draft.pk])).status_code == 404
    assert client_for(stranger).post(reverse("snapshots:take_snapshot", args=[volume.pk])).status_code == 404


def test_a_signed_out_person_is_sent_to_sign_in_and_back(member: Membership, volume: Volume) -> None:
    draft = draft_at("name", volume, member.user)
    response = Client().get(url(draft, "name"))
    assert response["Location"] == f"{reverse('account_login')}?next={url(draft, 'name')}"
    response = Client().post(
        url(draft, "name"), {}, headers={**HTMX, "HX-Current-URL": f"http://testserver{url(draft, 'name')}"}
    )
    assert response.status_code == 200
    assert response["HX-Redirect"] == f"{reverse('account_login')}?next={url(draft, 'name').replace('/', '%2F')}"


def test_a_colleague_with_the_right_role_can_continue_the_draft(
    client_for: Any, member: Membership, volume: Volume
) -> None:
    draft = draft_at("review", volume, member.user)
    colleague = MembershipFactory(project=member.project, role=Role.MEMBER).user
    assert client_for(colleague).get(url(draft, "review")).status_code == 200
    assert confirm(client_for(colleague), draft).status_code == 302
    assert Snapshot.objects.get().requested_by == colleague


def test_a_viewer_in_the_wizard_gets_the_reason_for_the_refusal(
    client_for: Any, member: Membership, volume: Volume
) -> None:
    viewer = client_for(MembershipFactory(project=member.project, role=Role.VIEWER).user)
    draft = draft_at("review", volume, member.user)
    for response in (
        viewer.get(reverse("snapshots:new")),
        viewer.get(url(draft, "review")),
        confirm(viewer, draft),
        viewer.post(reverse("snapshots:take_snapshot", args=[volume.pk])),
    ):
        assert response.status_code == 403
        assert "owner" in response.text
    assert not Snapshot.objects.exists()


@pytest.mark.parametrize(
    ("step", "answer", "sentence"),
    [
        ("location", "", "Choose a location."),
        ("location", "1CNG-NOWHERE", "This location is no longer available."),
        ("project", "", "Choose a project."),
        ("project", NOBODYS_ID, "You can no longer use this project."),
        ("project", "no uuid", "You can no longer use this project."),
        ("volume", "", "Choose a volume."),
        ("volume", NOBODYS_ID, "You can no longer take a snapshot of this volume."),
        ("volume", "\x00", "You can no longer take a snapshot of this volume."),
        ("name", "", "Enter a name"),
        ("name", "   ", "Enter a name"),
        ("name", "x" * 121, "The name has 121 characters; the limit is 120."),
        ("name", "two\nlines", "a character that can't be displayed"),
    ],
)
def test_a_bad_answer_is_explained_and_loses_nothing(
    client: Client, member: Membership, volume: Volume, step: str, answer: str, sentence: str
) -> None:
    draft = draft_at(step, volume, member.user)
    response = client.post(url(draft, step), {step: answer}, headers=HTMX)
    assert response.status_code == 200
    assert unescape(response.text).count(sentence) >= 2, "in the summary and beside the field"
    if step == "name" and answer.strip() and answer.isprintable():
        assert f'value="{answer}"' in response.text
    draft.refresh_from_db()
    assert not getattr(draft, step)


@pytest.mark.both_databases
@pytest.mark.parametrize("step", ["location", "volume"])
def test_a_search_for_a_character_that_no_name_has_finds_nothing(
    client: Client, member: Membership, volume: Volume, step: str
) -> None:
    """PostgreSQL refuses a NUL in a parameter."""
    response = client.get(url(draft_at(step, volume, member.user), step), {"q": "a\x00"})
    assert response.status_code == 200
    assert volume.name not in response.text


def test_another_customers_resources_are_unknown(client: Client, member: Membership, volume: Volume) -> None:
    foreign = VolumeFactory(location=volume.location)
    draft = draft_at("project", volume, member.user)
    assert (
        "You can no longer use this project" in client.post(url(draft, "project"), {"project": foreign.project_id}).text
    )
    draft = draft_at("volume", volume, member.user)
    response = client.post(url(draft, "volume"), {"volume": foreign.pk})
    assert "You can no longer take a snapshot of this volume" in response.text and foreign.name not in response.text


def test_a_location_says_why_it_cannot_be_chosen(client: Client, volume: Volume) -> None:
    empty = LocationFactory(code="1CNG-MDY-AZ01")
    unsold = LocationFactory(code="1CNG-SIN-AZ01", country="SG", region="southeast-asia")
    page = client.get(reverse("snapshots:new")).text
    assert "Volume snapshots are not sold in 1CNG-SIN-AZ01." in page
    assert (
        "not sold in 1CNG-SIN-AZ01. Choose another location."
        in client.post(reverse("snapshots:new"), {"location": unsold.pk}).text
    )
    sell(empty)
    assert "You have no volume in 1CNG-MDY-AZ01." in client.get(reverse("snapshots:new")).text
    assert (
        "You have no volume in 1CNG-MDY-AZ01. Choose another location."
        in client.post(reverse("snapshots:new"), {"location": empty.pk}).text
    )
    assert not Draft.objects.exists()


def sell(location: Location) -> None:
    package = Package.objects.create(location=location, kind="bs_snapshot", name="BS")
    PriceVersion.objects.create(package=package, rate_micro=400_000, starts_at=timezone.now())


def test_region_tabs_narrow_the_locations(client: Client, volume: Volume) -> None:
    LocationFactory(code="1CNG-SIN-AZ01", country="SG", region="southeast-asia")
    asia = client.get(reverse("snapshots:new"), {"region": "asia"}).text
    assert volume.location_id in asia and "1CNG-SIN-AZ01" not in asia
    for name in ("snapshots:new", "snapshots:new_backup", "snapshots:create_volume"):
        everything = client.get(reverse(name), {"region": "nonsense"}).text
        assert volume.location_id in everything and "1CNG-SIN-AZ01" in everything
        assert "Filters that don't exist were ignored:" in unescape(everything) and "Region" in everything
    assert "were ignored" not in asia


def test_volumes_are_searched_by_name_and_machine(client: Client, member: Membership, volume: Volume) -> None:
    VolumeFactory(project=member.project, location=volume.location, attached=True, vm__name="mail-01", name="other")
    draft = draft_at("volume", volume, member.user)
    page = client.get(url(draft, "volume"), {"q": "MAIL"}).text
    assert "mail-01" in page and volume.name not in page
    nothing = client.get(url(draft, "volume"), {"q": "<nothing>"}).text
    assert "Nothing matches “&lt;nothing&gt;”" in nothing


def test_changing_an_answer_clears_those_that_depend_on_it(
    client: Client, storage_root: Path, member: Membership, volume: Volume
) -> None:
    other = VolumeFactory(project=member.project, location=volume.location)
    put_volume(storage_root, other, content(b"other"))
    draft = draft_at("review", volume, member.user)
    client.post(url(draft, "volume"), {"volume": other.pk})
    draft.refresh_from_db()
    assert (draft.volume, draft.name) == (other, "")
    elsewhere = VolumeFactory(project=member.project, location=LocationFactory(code="1CNG-MDY-AZ01"))
    sell(elsewhere.location)
    client.post(url(draft, "location"), {"location": elsewhere.location_id})
    draft.refresh_from_db()
    assert (draft.project, draft.volume) == (member.project, None)
    client.post(url(draft, "location"), {"location": elsewhere.location_id})
    assert client.get(url(draft, "review"))["Location"] == url(draft, "volume")


def test_a_deleted_volume_is_noticed_at_its_step(client: Client, member: Membership, volume: Volume) -> None:
    draft = draft_at("review", volume, member.user)
    Volume.objects.filter(pk=volume.pk).update(deleted_at=timezone.now())
    VolumeFactory(project=member.project, location=volume.location)
    response = confirm(client, draft)
    assert response["Location"] == url(draft, "volume")
    assert "You can no longer take a snapshot of this volume." in client.get(response["Location"]).text
    assert not Snapshot.objects.exists()


def test_a_lost_role_is_noticed(client_for: Any, member: Membership, volume: Volume) -> None:
    draft = draft_at("review", volume, member.user)
    MembershipFactory(user=member.user, project=ProjectFactory(customer=member.project.customer))
    member.role = Role.VIEWER
    member.save()
    response = confirm(client_for(member.user), draft)
    assert response["Location"] == url(draft, "location")  # the user has no volume there any more
    assert not Snapshot.objects.exists()


def test_a_price_that_moved_is_shown_before_it_is_charged(
    client: Client, member: Membership, volume: Volume, caplog: pytest.LogCaptureFixture
) -> None:
    draft = draft_at("review", volume, member.user)
    response = confirm(client, draft, shown_hourly_micro=19_000_000)
    assert response.status_code == 200
    assert "The price has changed to K 20.00 an hour since it was shown." in response.text
    prices = {"shown_hourly_micro": 19_000_000, "hourly_micro": 20_000_000}
    assert any(record.msg.items() >= prices.items() for record in caplog.records if isinstance(record.msg, dict))
    assert not Snapshot.objects.exists()
    assert confirm(client, draft).status_code == 302


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"billing_cycle": "monthly"}, "support only Hourly billing cycles"),
        ({"billing_cycle": ""}, "Choose a billing cycle."),
        ({"shown_hourly_micro": "free"}, "The price is missing."),
    ],
)
def test_a_tampered_review_is_explained(
    client: Client, member: Membership, volume: Volume, fields: dict, sentence: str
) -> None:
    response = confirm(client, draft_at("review", volume, member.user), **fields)
    assert response.status_code == 200 and sentence in response.text
    assert not Snapshot.objects.exists()


def test_a_package_retired_before_the_confirmation_is_reported_at_the_location_step(
    client: Client, member: Membership, volume: Volume
) -> None:
    draft = draft_at("review", volume, member.user)

    def take_out_of_sale(execute: Any, sql: str, *arguments: Any) -> Any:
        """Deactivate the packages after the steps were checked, when the customer is locked, without being rolled back."""
        locks, undoes = sql.startswith('UPDATE "accounts_customer"'), sql.startswith("ROLLBACK TO")
        result = execute(sql, *arguments)
        if locks or undoes:
            Package.objects.filter(active=True).update(active=False)
        return result

    with connection.execute_wrapper(take_out_of_sale):
        response = client.post(
            url(draft, "review"), {"billing_cycle": "hourly", "shown_hourly_micro": 20_000_000}, follow=True
        )
    assert response.redirect_chain[-1][0] == url(draft, "location")
    assert "Volume snapshots are not sold in" in response.text
    assert not Snapshot.objects.exists()


def test_a_taken_name_is_kept_and_a_free_one_offered(client: Client, member: Membership, volume: Volume) -> None:
    SnapshotFactory(volume=volume, name="Nightly")
    draft = draft_at("name", volume, member.user)
    response = client.post(url(draft, "name"), {"name": "NIGHTLY"})
    assert 'value="NIGHTLY"' in response.text
    assert "“NIGHTLY-2” is free" in response.text
    assert client.post(url(draft, "name"), {"name": "NIGHTLY-2"}).status_code == 302


def test_a_name_that_was_taken_meanwhile_leads_back_to_the_name(
    client: Client, member: Membership, volume: Volume
) -> None:
    draft = draft_at("review", volume, member.user)
    SnapshotFactory(volume=volume, name="Nightly")
    response = confirm(client, draft)
    assert response["Location"] == url(draft, "name")
    page = client.get(response["Location"]).text
    assert 'value="nightly"' in page and "“nightly-2” is free" in page
    assert "<title>Error" in page


def test_uniqueness_is_checked_while_typing(client: Client, member: Membership, volume: Volume) -> None:
    SnapshotFactory(volume=volume, name="Nightly")
    draft = draft_at("name", volume, member.user)
    check = reverse("snapshots:check_name", args=[draft.pk])
    assert "“nightly-2” is free" in client.get(check, {"name": "nightly"}).text
    assert "This name is available." in client.get(check, {"name": "weekly"}).text


def test_a_free_name_is_suggested(client: Client, member: Membership, volume: Volume) -> None:
    day = timezone.localtime(timezone.now(), member.project.customer.zone).date().isoformat()
    SnapshotFactory(volume=volume, name=f"DB-01-data-{day}")
    page = client.get(url(draft_at("name", volume, member.user), "name")).text
    assert f'value="db-01-data-{day}-2"' in page


@pytest.mark.parametrize("owner", ["customer", "project"])
def test_a_full_quota_is_shown_at_the_volume_step(
    client: Client, member: Membership, volume: Volume, owner: str
) -> None:
    limited = member.project if owner == "project" else member.project.customer
    type(limited).objects.filter(pk=limited.pk).update(snapshot_gb_quota=49)
    draft = draft_at("volume", volume, member.user)
    assert "0 of 49 GB of snapshots" in client.get(url(draft, "volume")).text
    assert "Quota full" in client.post(url(draft, "volume"), {"volume": volume.pk}).text


def test_insufficient_credits_are_shown_at_the_volume_step(client: Client, member: Membership, volume: Volume) -> None:
    draft = draft_at("review", volume, member.user)
    type(member.project.customer).objects.update(billing_type="prepaid")
    response = client.post(url(draft, "volume"), {"volume": volume.pk})
    assert "Insufficient infra credit" in response.text and "K 20.00 more" in response.text
    assert confirm(client, draft)["Location"] == url(draft, "volume")
    assert not Snapshot.objects.exists()


def test_the_price_is_shown_from_the_moment_the_size_is_known(
    client: Client, member: Membership, volume: Volume
) -> None:
    for step, has_price in [("location", False), ("project", False), ("name", True), ("review", True)]:
        page = client.get(url(draft_at(step, volume, member.user), step)).text
        assert ("Price Summary" in page) is has_price, step
        assert "K 0.00 " not in page


def test_take_snapshot_on_a_volume_gives_three_answers(client: Client, volume: Volume) -> None:
    response = client.post(reverse("snapshots:take_snapshot", args=[volume.pk]))
    assert response["Location"] == url(Draft.objects.get(), "name")
    assert "Choose Snapshot Name" in client.get(response["Location"]).text


def test_only_a_users_newest_drafts_are_kept(client: Client, member: Membership, volume: Volume) -> None:
    now, customer = timezone.now(), member.project.customer
    mine = [
        DraftFactory(created_by=member.user, customer=customer, created_at=now - timedelta(minutes=minutes))
        for minutes in range(1, MAX_DRAFTS + 10)
    ]
    done = DraftFactory(created_by=member.user, customer=customer, created_at=now - timedelta(days=1))
    SnapshotFactory(volume=volume, draft=done)
    colleagues = DraftFactory(customer=customer, created_at=now - timedelta(days=1))
    client.post(reverse("snapshots:take_snapshot", args=[volume.pk]))
    newest = Draft.objects.latest("created_at")
    assert set(Draft.objects.all()) == {newest, *mine[: MAX_DRAFTS - 1], done, colleagues}


def test_a_user_who_starts_many_drafts_without_finishing_them_has_to_wait(
    client: Client, member: Membership, volume: Volume
) -> None:
    start = reverse("snapshots:take_snapshot", args=[volume.pk])
    for _number in range(limits.MAX_NEW_DRAFTS):
        assert client.post(start)["Location"] == url(Draft.objects.latest("created_at"), "name")
    for attempt in (
        client.post(start, follow=True),
        client.post(reverse("snapshots:new"), {"location": volume.location_id}),
    ):
        assert "without finishing them" in attempt.text
    assert Draft.objects.count() == limits.MAX_NEW_DRAFTS
    SnapshotFactory(volume=volume, draft=Draft.objects.earliest("created_at"))
    assert client.post(start)["Location"] == url(Draft.objects.latest("created_at"), "name")


def test_a_draft_that_is_done_leads_to_its_snapshot(client: Client, member: Membership, volume: Volume) -> None:
    draft = draft_at("review", volume, member.user)
    done = confirm(client, draft)["Location"]
    assert confirm(client, draft)["Location"] == done
    assert client.get(url(draft, "name"))["Location"] == done
    assert client.post(url(draft, "review"), {}, headers=HTMX)["HX-Redirect"] == done
    assert Snapshot.objects.count() == 1


def test_an_unknown_step_is_not_found(client: Client, member: Membership, volume: Volume) -> None:
    assert client.get(url(draft_at("name", volume, member.user), "nonsense")).status_code == 404


def test_a_user_without_projects_gets_an_explanation(client_for: Any) -> None:
    assert client_for(UserFactory()).get(reverse("snapshots:new")).status_code == 403


def test_the_review_estimates_until_a_date(client: Client, member: Membership, volume: Volume) -> None:
    draft = draft_at("review", volume, member.user)
    today = timezone.localdate(timezone=member.project.customer.zone)
    page = client.get(url(draft, "review"), {"until": (today + timedelta(days=1)).isoformat()}).text
    assert "K 480.00" in page and "K 14,640.00" in page and "From now to the end of" in page
    for wrong in ("yesterday", "", "1999-12-31", "9999-12-31"):
        answer = client.get(url(draft, "review"), {"until": wrong})
        assert answer.status_code == 200 and "Enter a date" in answer.text


def test_prepaid_customers_see_how_long_their_credits_last(client: Client, member: Membership, volume: Volume) -> None:
    customer = member.project.customer
    type(customer).objects.update(billing_type="prepaid")
    buy_credits(customer=customer, amount_micro=48_000_000_000, reason="test", by=None, key="a hundred days")
    page = client.get(url(draft_at("review", volume, member.user), "review")).text
    end = timezone.localtime(timezone.now() + timedelta(days=100), customer.zone)
    assert f"until {day(end.date())}" in page


def test_answers_sent_after_the_session_ended_survive_signing_in(
    client: Client, member: Membership, volume: Volume
) -> None:
    path = wizard.url(wizard.start(member.user, source=volume), "name")
    stranger = Client()

    response = stranger.post(path, {"name": "before the update", "csrfmiddlewaretoken": "x"})

    assert response.status_code == 302
    assert "Your session ended" in stranger.get(response["Location"]).text
    back = parse_qs(urlsplit(response["Location"]).query)["next"][0]
    assert back == f"{path}?name=before+the+update"
    assert 'value="before the update"' in client.get(back).text


def test_answers_sent_by_htmx_after_the_session_ended_are_kept(member: Membership, volume: Volume) -> None:
    path = wizard.url(wizard.start(member.user, source=volume), "name")

    response = Client().post(path, {"name": "kept"}, headers=HTMX)

    assert parse_qs(urlsplit(response["HX-Redirect"]).query)["next"] == [f"{path}?name=kept"]


def test_a_name_that_is_checked_while_it_is_typed_survives_the_end_of_the_session(
    member: Membership, volume: Volume
) -> None:
    draft = wizard.start(member.user, source=volume)
    path, check = wizard.url(draft, "name"), reverse("snapshots:check_name", args=[draft.pk])
    here = HTMX | {"HX-Current-URL": f"http://testserver{path}?name=old"}

    response = Client().get(check, {"name": "typed"}, headers=here)

    assert parse_qs(urlsplit(response["HX-Redirect"]).query)["next"] == [f"{path}?name=typed"]


@pytest.mark.parametrize("name", ["new_vm", "new_backup"])
def test_the_first_step_for_a_machine_speaks_of_the_instance(name: str, client: Client) -> None:
    page = client.get(reverse(f"snapshots:{name}")).text
    assert "The data center where your instance is." in page
    assert "your volume" not in page
