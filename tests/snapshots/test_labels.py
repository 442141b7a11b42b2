"""Tags and notes of volumes and snapshots: permissions, suggestions and filters."""

from collections.abc import Callable
from html import unescape
from typing import Any

import pytest
from django.core.exceptions import ValidationError
from django.db import IntegrityError, connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import reverse
from django.utils import timezone

from cng_portal.accounts.models import Project, Role, User
from cng_portal.activity.models import Activity
from cng_portal.inventory.models import Tag, Volume
from snapshots.labels import MAX_TAGS, change_labels, delete_unused_tags, parse_tags, visible_tags
from snapshots.models import Snapshot
from snapshots.recycle_bin import put_in_bin
from snapshots.search import search
from tests.factories import ProjectFactory, SnapshotFactory, UserFactory, VolumeFactory

pytestmark = pytest.mark.django_db


@pytest.fixture
def project() -> Project:
    return ProjectFactory()


@pytest.fixture
def member(project: Project) -> User:
    return UserFactory(member_of=project, member_of__role=Role.MEMBER)


@pytest.fixture
def snapshot(project: Project) -> Snapshot:
    return SnapshotFactory(volume__project=project, volume__name="db-01-data", name="before the update")


def label(target: Any, user: User, *names: str, **changes: Any) -> dict:
    return change_labels(model=type(target), ids=[target.pk], user=user, add=names, **changes)


def names_of(target: Any) -> list[str]:
    return [tag.name for tag in target.tags.order_by("name_key")]


def suggested(user: User) -> list[str]:
    return [tag.name for tag in visible_tags(user)]


@pytest.mark.both_databases
@pytest.mark.parametrize("kind", ["volume", "snapshot"])
def test_the_form_adds_and_removes_tags_and_keeps_the_note(
    kind: str, snapshot: Snapshot, member: User, client_for: Callable[..., Client]
) -> None:
    target: Any = snapshot if kind == "snapshot" else snapshot.volume
    url = reverse("snapshots:labels" if kind == "snapshot" else "snapshots:volume_labels", args=[target.pk])
    page = reverse(f"snapshots:{kind}", args=[target.pk])
    client = client_for(member)
    assert client.get(url).status_code == 200
    note = "Taken before 5.2.\r\n<b>Keep</b> until March."
    assert client.post(url, {"add": " Prod , before  update,prod", "note": note}).url == page
    assert names_of(target) == ["before update", "Prod"]
    html = client.get(page).text
    assert "Taken before 5.2.<br>&lt;b&gt;Keep&lt;/b&gt; until March." in html
    assert ">Prod</a>" in html
    shown_then = {"shown": ["before update", "Prod"], "shown_note": note}
    assert client.post(url, shown_then | {"keep": ["Prod"], "add": "weekly", "note": ""}).url == page
    assert names_of(target) == ["Prod", "weekly"]
    target.refresh_from_db()
    assert target.note == ""
    first, second = Activity.objects.filter(action="labels.change").order_by("at")
    assert (first.before, first.after["tags"]) == ({"tags": [], "note": ""}, ["before update", "Prod"])
    assert second.after == {"tags": ["Prod", "weekly"], "note": ""}
    client.post(url, {"keep": ["Prod", "weekly"], "add": "PROD", "note": ""})
    assert Activity.objects.filter(action="labels.change").count() == 2  # nothing changed


def test_a_colleagues_concurrent_change_stays(
    snapshot: Snapshot, member: User, client_for: Callable[..., Client]
) -> None:
    label(snapshot, member, "old", "mine", note="first\nsecond")
    url, client = reverse("snapshots:labels", args=[snapshot.pk]), client_for(member)
    form = client.get(url).context["form"]
    sent = {name: form.initial[name] for name in ("shown", "shown_note", "note")} | {"keep": ["old"], "add": ""}
    assert all(f'name="{name}"' in client.get(url).text for name in ("shown", "shown_note"))
    label(snapshot, UserFactory(member_of=snapshot.project), "new", note="theirs")
    client.post(url, {name: value.replace("\n", "\r\n") if "note" in name else value for name, value in sent.items()})
    snapshot.refresh_from_db()
    assert (names_of(snapshot), snapshot.note) == (["new", "old"], "theirs")


def test_a_tag_that_a_colleague_removed_meanwhile_is_named_and_the_rest_is_saved(
    snapshot: Snapshot, member: User, client_for: Callable[..., Client]
) -> None:
    label(snapshot, member, "old", "mine")
    other = SnapshotFactory(volume=snapshot.volume)
    label(other, member, "old")
    url, client = reverse("snapshots:labels", args=[snapshot.pk]), client_for(member)
    for present in (["mine"], []):
        change_labels(model=Snapshot, ids=[snapshot.pk], user=member, remove={"old", "mine"} - set(present))
        sent = {"shown": ["old", "mine"], "keep": ["old", "mine"], "add": "new", "note": "kept"}
        page = client.post(url, sent, follow=True).text
        assert "removed" in page and "“old”" in page and "valid choice" not in page
        assert names_of(snapshot) == [*present, "new"]
        change_labels(model=Snapshot, ids=[snapshot.pk], user=member, remove=["new"])
    many = f"{reverse('snapshots:tag_snapshots')}?id={snapshot.pk}"
    page = client.post(many, {"id": [snapshot.pk], "add": "", "remove": ["old"]}, follow=True).text
    assert "are saved" in page and "valid choice" not in page


@pytest.mark.both_databases
def test_tags_that_nothing_has_are_deleted(snapshot: Snapshot, member: User) -> None:
    label(snapshot, member, "used", "unused")
    change_labels(model=Snapshot, ids=[snapshot.pk], user=member, remove=["unused"])
    change_labels(model=Volume, ids=[snapshot.volume_id], user=member, add=["of a volume"])
    binned = SnapshotFactory(volume=snapshot.volume)
    label(binned, member, "of one in the recycle bin")
    put_in_bin(binned, at=timezone.now(), user=member)
    Tag.objects.create(customer=snapshot.customer, name="never used")
    delete_unused_tags()
    assert sorted(Tag.objects.values_list("name", flat=True)) == [
        "of a volume",
        "of one in the recycle bin",
        "used",
    ]


def test_errors_are_explained_and_input_is_kept(
    snapshot: Snapshot, member: User, client_for: Callable[..., Client]
) -> None:
    label(snapshot, member, "old")
    url, client = reverse("snapshots:labels", args=[snapshot.pk]), client_for(member)
    for sent, message in (
        ({"add": "x" * 41, "note": "kept"}, "the limit is 40"),
        ({"add": "a\u202eb", "note": "kept"}, "a character that can't be displayed"),
        ({"add": ",".join(map(str, range(MAX_TAGS))), "keep": ["old"], "note": "kept"}, "the limit is 20"),
        ({"add": "fine", "note": "kept" + "x" * 500}, "the limit is 500"),
        ({"add": "fine", "note": "kept\u0007"}, "a character that can't be displayed"),
    ):
        page = unescape(client.post(url, sent).text)
        assert message in page
        assert "kept" in page
        assert sent["add"] in page
    assert names_of(snapshot) == ["old"]


def test_strangers_get_a_404_and_viewers_a_403(
    snapshot: Snapshot, project: Project, client_for: Callable[..., Client]
) -> None:
    stranger, viewer = UserFactory(member_of=ProjectFactory()), UserFactory(member_of=project, member_of__role="viewer")
    urls = [
        reverse("snapshots:labels", args=[snapshot.pk]),
        reverse("snapshots:volume_labels", args=[snapshot.volume_id]),
        f"{reverse('snapshots:tag_snapshots')}?id={snapshot.pk}",
        f"{reverse('snapshots:tag_volumes')}?id={snapshot.volume_id}",
    ]
    for url in urls:
        assert [client_for(reader).get(url).status_code for reader in (stranger, viewer)] == [404, 403]
    assert "Tags and note" not in client_for(viewer).get(reverse("snapshots:snapshot", args=[snapshot.pk])).text


@pytest.mark.both_databases
def test_only_tags_in_use_that_the_user_sees_are_suggested(
    snapshot: Snapshot, project: Project, member: User, client_for: Callable[..., Client]
) -> None:
    secret = SnapshotFactory(volume__project=ProjectFactory(customer=project.customer))
    label(secret, UserFactory(member_of=secret.project), "secret")  # of a colleague, in another project
    foreign = SnapshotFactory()
    label(foreign, UserFactory(member_of=foreign.project), "foreign")
    label(snapshot, member, "gone", "stays")
    label(snapshot.volume, member, "disk")
    label(snapshot, member, remove=["GONE"])
    assert suggested(member) == ["disk", "stays"]
    page = client_for(member).get(reverse("snapshots:labels", args=[snapshot.pk])).text
    assert '<option value="stays">' in page
    for name in ("secret", "foreign", "gone"):
        assert f'value="{name}"' not in page
        assert not search(member, name)
    panel = client_for(member).get("/snapshots/?filters=1", headers={"hx-request": "true"}).text
    assert "stays" in panel and "secret" not in panel and "foreign" not in panel
    foreign_tag = Tag.objects.get(name="foreign")
    listed = client_for(member).get(f"/snapshots/?tag={foreign_tag.pk}").text
    assert snapshot.name in listed and "foreign" not in listed  # an invalid filter is ignored


def test_tags_are_unique_per_customer_ignoring_case(snapshot: Snapshot, member: User) -> None:
    label(snapshot, member, "Prod")
    label(snapshot.volume, member, "PROD")
    tag = Tag.objects.get()
    assert names_of(snapshot) == names_of(snapshot.volume) == ["Prod"]
    assert parse_tags("a, A ,b,,") == ["a", "b"]
    with pytest.raises(ValidationError):
        parse_tags("x" * 41)
    with pytest.raises(IntegrityError):
        Tag.objects.create(customer=tag.customer, name="prod")


@pytest.mark.both_databases
def test_lists_filter_by_tag_beside_other_filters(
    snapshot: Snapshot, project: Project, member: User, client_for: Callable[..., Client]
) -> None:
    other = SnapshotFactory(volume=VolumeFactory(project=project, name="web"), name="other")
    for target in (snapshot, other, snapshot.volume):
        label(target, member, "prod")
    SnapshotFactory(volume=snapshot.volume, name="untagged")
    tag, client = Tag.objects.get(), client_for(member)
    page = client.get(f"/snapshots/?tag={tag.pk}&q=update&sort=name")
    assert [row.snapshot for row in page.context["rows"]] == [snapshot]
    assert 'href="?q=update&amp;sort=name"' in page.text  # the chip removes only the tag
    assert [row.snapshot.name for row in client.get(f"/snapshots/?tag={tag.pk}&sort=name").context["rows"]] == [
        "before the update",
        "other",
    ]
    assert [row.volume for row in client.get(f"/volumes/?tag={tag.pk}").context["rows"]] == [snapshot.volume]
    hits = {group.label: [hit.note for hit in group.hits] for group in search(member, "prod")}
    assert hits == {"Tags": ["Volumes with this tag", "Volume snapshots with this tag"]}


@pytest.mark.both_databases
def test_many_are_tagged_at_once(
    snapshot: Snapshot, project: Project, member: User, client_for: Callable[..., Client]
) -> None:
    other = SnapshotFactory(volume=snapshot.volume)
    label(other, member, "old", *map(str, range(MAX_TAGS - 1)))
    client, ids = client_for(member), [snapshot.pk, other.pk]
    url = reverse("snapshots:tag_snapshots")
    page = client.get(url, {"id": ids}).text
    assert "Tag 2 selected" in page and 'value="old"' in page
    assert "Enter a tag to add" in client.post(url, {"id": ids}).text
    done = client.post(url, {"id": ids, "add": "new"}, follow=True)
    assert "would have 21 tags; the limit is 20." in done.text
    assert names_of(snapshot) == ["new"]
    client.post(url, {"id": ids, "add": "new", "remove": "old"})
    assert "new" in names_of(other) and "old" not in names_of(other)
    assert client.post(url, {"id": []}).url == "/snapshots/"
    volumes = reverse("snapshots:tag_volumes")
    assert client.post(volumes, {"id": [snapshot.volume_id], "add": "new"}).url == "/volumes/"
    assert names_of(snapshot.volume) == ["new"]
    assert client.get(volumes, {"id": [snapshot.volume_id, VolumeFactory().pk]}).status_code == 404


def test_a_list_reads_all_tags_with_one_query(
    snapshot: Snapshot, member: User, client_for: Callable[..., Client]
) -> None:
    client = client_for(member)

    def count(path: str) -> int:
        with CaptureQueriesContext(connection) as queries:
            client.get(path)
        return len(queries)

    client.get("/snapshots/")
    before = {path: count(path) for path in ("/snapshots/", "/volumes/")}
    for number in range(3):
        more = SnapshotFactory(volume=VolumeFactory(project=snapshot.project), name=f"more {number}")
        label(more, member, "prod", str(number))
        label(more.volume, member, "prod")
    assert {path: count(path) for path in before} == before


def test_a_deleted_volume_keeps_its_tags_as_they_are(snapshot: Snapshot, member: User) -> None:
    volume: Volume = VolumeFactory(project=snapshot.project, gone=True)
    assert label(volume, member, "late") == {volume.pk: f"“{volume.name}” is deleted."}
