"""The list of snapshots: permissions, filters, orders, keyset pages, and fragments that equal the page."""

import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from html import unescape
from urllib.parse import parse_qs, urlsplit
from uuid import uuid4

import pytest
from django.db import connection
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from cng_portal.accounts.models import Project, Role
from cng_portal.common.pages import PAGE_SIZE
from snapshots.lists import SNAPSHOT_ORDERS
from snapshots.models import Operation, Snapshot
from snapshots.views.rows import listed_snapshots
from tests.factories import (
    LocationFactory,
    MembershipFactory,
    OperationFactory,
    ProjectFactory,
    SnapshotFactory,
    UserFactory,
    VMSnapshotFactory,
    VolumeFactory,
)
from tests.snapshots.disks import sell_everywhere

pytestmark = pytest.mark.django_db

LIST = "/snapshots/"
HTMX = {"HX-Request": "true"}


@pytest.fixture
def project() -> Project:
    return ProjectFactory(name="Software")


@pytest.fixture
def client(project: Project, client_for: Callable[..., Client]) -> Client:
    return client_for(UserFactory(member_of=project))


def snapshots_of(project: Project, count: int, **fields: object) -> list[Snapshot]:
    """Create `count` snapshots, the newest first, an hour apart."""
    volume = VolumeFactory(project=project)
    start = timezone.now()
    return [SnapshotFactory(volume=volume, created_at=start - timedelta(hours=n), **fields) for n in range(count)]


def names(response: object, attribute: str = "snapshot") -> list[str]:
    return [getattr(row, attribute).name for row in response.context["rows"]]  # type: ignore[attr-defined]


def part_of(page: str, element_id: str) -> str:
    """Return the <div> of the page with this ID."""
    start = page.index(f'<div id="{element_id}"')
    depth, at = 0, start
    while True:
        opening, closing = page.find("<div", at), page.find("</div>", at)
        if opening != -1 and opening < closing:
            depth, at = depth + 1, opening + 4
        else:
            depth, at = depth - 1, closing + 6
        if depth == 0:
            return page[start:at]


def test_the_page_has_its_tabs_its_button_and_its_plus(client: Client, project: Project) -> None:
    snapshots_of(project, 1)

    page = client.get(LIST).content.decode()

    assert "<h1>Snapshots</h1>" in page
    assert "VM Snapshot" in page
    assert "Volume Snapshot" in page
    assert "Take Snapshot" in page
    assert '<span class="visually-hidden">New snapshot</span>' in page
    assert "1 snapshot<" in page


def test_a_row_shows_source_location_size_and_state(client: Client, project: Project) -> None:
    location = LocationFactory(code="1CNG-YGN-AZ01")
    volume = VolumeFactory(project=project, location=location, size_gb=50, name="web-01-root")
    SnapshotFactory(volume=volume, name="before-upgrade")
    sell_everywhere(400_000)

    page = client.get(LIST).content.decode()

    for word in ("before-upgrade", "web-01-root", "Software", "1CNG-YGN-AZ01", "50 GB", "K 20.00<", "Ready"):
        assert word in page


def test_a_snapshot_outlives_its_volume_and_says_so(client: Client, project: Project) -> None:
    SnapshotFactory(volume=VolumeFactory(project=project, gone=True))

    assert "Deleted volume" in client.get(LIST).content.decode()


def test_a_failed_snapshot_costs_nothing(client: Client, project: Project) -> None:
    SnapshotFactory(volume__project=project, failed=True)
    sell_everywhere()

    assert client.get(LIST).context["rows"][0].hourly == ""


def test_usage_of_a_retired_package_still_costs(client: Client, project: Project) -> None:
    SnapshotFactory(volume__project=project, volume__size_gb=50)
    sell_everywhere(400_000)
    for package in project.volumes.get().location.packages.all():
        package.active = False
        package.save()

    assert client.get(LIST).context["rows"][0].hourly == "K 20.00"


def test_only_snapshots_of_the_users_projects_are_listed(client: Client, project: Project) -> None:
    mine = SnapshotFactory(volume__project=project)
    SnapshotFactory(volume__project=ProjectFactory(customer=project.customer))
    SnapshotFactory()
    SnapshotFactory(volume__project=project, deleted=True)

    assert names(client.get(LIST)) == [mine.name]


def test_a_signed_out_user_returns_to_the_page_after_sign_in(client: Client) -> None:
    response = Client().get("/snapshots/?state=failed")

    assert response.status_code == 302
    assert parse_qs(urlsplit(response["Location"]).query)["next"] == ["/snapshots/?state=failed"]


def test_an_expired_session_sends_the_whole_page_to_sign_in(client: Client) -> None:
    response = Client().get(LIST, headers=HTMX | {"HX-Current-URL": "http://testserver/snapshots/?q=web"})

    assert response.status_code == 200
    assert "next=%2Fsnapshots%2F%3Fq%3Dweb" in response["HX-Redirect"]


def test_a_viewer_sees_everything_and_is_offered_no_change(project: Project, client_for: Callable[..., Client]) -> None:
    snapshot = SnapshotFactory(volume__project=project)
    viewer = client_for(UserFactory(member_of=project, member_of__role=Role.VIEWER))

    page = viewer.get(LIST).content.decode()

    assert snapshot.name in page
    assert "Take Snapshot" not in page
    assert "Actions for" not in page


@pytest.mark.parametrize("view", ["table", "cards"])
def test_a_row_loads_its_menu_on_demand(client: Client, project: Project, view: str) -> None:
    snapshot = SnapshotFactory(volume__project=project)

    page = client.get(LIST, {"view": view}).text

    assert f'hx-get="{reverse("snapshots:menu", args=[snapshot.pk])}"' in page
    assert reverse("snapshots:rename", args=[snapshot.pk]) not in page


def test_the_menu_of_a_row_offers_what_the_page_of_the_snapshot_does(client: Client, project: Project) -> None:
    snapshot = SnapshotFactory(volume__project=project)

    menu = client.get(reverse("snapshots:menu", args=[snapshot.pk]), headers=HTMX).text
    page = client.get(reverse("snapshots:snapshot", args=[snapshot.pk])).text

    links = re.findall(r'<a [^>]*class="menu-item[^"]*" href="([^"]+)"', menu)
    actions = (
        "new_volume",
        "restore",
        "files",
        "lock",
        "rename",
        "labels",
        "expiry",
        "verify",
        "request_drill",
        "delete",
    )
    assert links == [reverse(f"snapshots:{action}", args=[snapshot.pk]) for action in actions]
    assert sorted(re.findall(r'id="act-\w+" href="([^"]+)"', page)) == sorted(links)


def test_a_menu_is_private_and_without_htmx_redirects_to_the_page(client: Client, project: Project) -> None:
    mine, strange = SnapshotFactory(volume__project=project), SnapshotFactory()

    assert client.get(reverse("snapshots:menu", args=[strange.pk]), headers=HTMX).status_code == 404
    response = client.get(reverse("snapshots:menu", args=[mine.pk]))
    assert response["Location"] == reverse("snapshots:snapshot", args=[mine.pk])


def test_a_menu_says_when_no_action_is_possible(client: Client, project: Project) -> None:
    snapshot = SnapshotFactory(volume__project=project, deleting=True)

    assert "No actions right now" in client.get(reverse("snapshots:menu", args=[snapshot.pk]), headers=HTMX).text


def test_an_empty_list_invites(client: Client) -> None:
    page = client.get(LIST).content.decode()

    assert "Take your first block storage snapshot" in page
    assert f'href="{reverse("snapshots:new")}"' in page


def test_a_viewer_is_not_invited_to_what_is_not_allowed(project: Project, client_for: Callable[..., Client]) -> None:
    viewer = client_for(UserFactory(member_of=project, member_of__role=Role.VIEWER))

    page = viewer.get(LIST).content.decode()

    assert "No snapshots yet" in page
    assert f'href="{reverse("snapshots:new")}"' not in part_of(page, "snapshot-list")


def test_the_empty_tab_of_vm_snapshots_offers_to_take_one(client: Client, project: Project) -> None:
    SnapshotFactory(volume__project=project)

    page = client.get("/snapshots/vm/").content.decode()

    assert "Take your first VM snapshot" in page
    assert f'href="{reverse("snapshots:new_vm")}"' in page


def test_vm_snapshots_have_the_same_list(client: Client, project: Project) -> None:
    SnapshotFactory(volume__project=project)
    vm_snapshot = VMSnapshotFactory(vm__project=project)

    assert names(client.get("/snapshots/vm/")) == [vm_snapshot.name]


def test_no_results_are_reported_with_a_way_back(client: Client, project: Project) -> None:
    SnapshotFactory(volume__project=project)

    page = client.get(LIST, {"q": "nothing like it"}).content.decode()

    assert "No snapshot matches" in page
    assert 'value="nothing like it"' in page
    assert "Clear search and filters" in page


@pytest.mark.parametrize("typed", ["before", "BEFORE-UP", " upgrade ", "ﬁ"])
def test_search_finds_part_of_a_name_in_any_case(typed: str, client: Client, project: Project) -> None:
    SnapshotFactory(volume__project=project, name="Before-Upgrade-fine")
    SnapshotFactory(volume__project=project, name="other")

    assert names(client.get(LIST, {"q": typed})) == ["Before-Upgrade-fine"]


def test_search_finds_by_the_volume_s_name(client: Client, project: Project) -> None:
    hit = SnapshotFactory(volume=VolumeFactory(project=project, name="web-01-root"))
    SnapshotFactory(volume__project=project)

    assert names(client.get(LIST, {"q": "web-01"})) == [hit.name]


@pytest.mark.parametrize("written", [str, lambda uuid: uuid.hex])
def test_search_finds_by_uuid(written: Callable, client: Client, project: Project) -> None:
    hit = SnapshotFactory(volume__project=project)
    SnapshotFactory(volume__project=project)

    assert names(client.get(LIST, {"q": written(hit.pk)})) == [hit.name]


@pytest.mark.parametrize("typed", ["%", "_", "\\", "'", "\x00", "a" * 500, "<script>"])
def test_search_for_anything_is_harmless(typed: str, client: Client, project: Project) -> None:
    SnapshotFactory(volume__project=project, name="plain")

    assert client.get(LIST, {"q": typed}).status_code == 200


def test_a_percent_sign_finds_only_a_percent_sign(client: Client, project: Project) -> None:
    SnapshotFactory(volume__project=project, name="plain")
    SnapshotFactory(volume__project=project, name="100%")

    assert names(client.get(LIST, {"q": "%"})) == ["100%"]


def test_each_filter_narrows_the_list(client: Client, project: Project) -> None:
    hit = SnapshotFactory(volume__project=project, failed=True)
    SnapshotFactory(volume__project=project)
    filters = {
        "state": "failed",
        "location": hit.location_id,
        "volume": str(hit.volume_id),
    }

    for name, value in filters.items():
        assert names(client.get(LIST, {name: value})) == [hit.name], name


def test_the_project_filter_narrows_the_list(client: Client, project: Project) -> None:
    other = ProjectFactory(customer=project.customer)
    MembershipFactory(project=other, user=project.memberships.get().user)
    hit = SnapshotFactory(volume__project=other)
    SnapshotFactory(volume__project=project)

    assert names(client.get(LIST, {"project": str(other.pk)})) == [hit.name]


@pytest.mark.parametrize("name", ["state", "project", "location", "volume", "sort", "view"])
def test_an_unknown_filter_is_ignored_and_reported(name: str, client: Client, project: Project) -> None:
    mine = SnapshotFactory(volume__project=project)
    theirs = SnapshotFactory()
    unknown = {"project": theirs.project_id, "volume": theirs.volume_id}.get(name, "bogus")

    response = client.get(LIST, {name: str(unknown)})

    assert names(response) == [mine.name]
    assert "were ignored:" in response.content.decode()


def test_filters_never_reach_into_other_customers(client: Client, project: Project) -> None:
    theirs = SnapshotFactory(name="secret")

    for params in ({"q": "secret"}, {"q": str(theirs.pk)}, {"volume": str(theirs.volume_id)}):
        assert "secret" not in [name for name in names(client.get(LIST, params))]


def walk(client: Client, params: dict[str, str]) -> list[list[str]]:
    """Follow the links from the first page to the last and back, which must give the same rows."""
    pages, url = [], LIST + "?" + "&".join(f"{name}={value}" for name, value in params.items())
    while url:
        response = client.get(url)
        pages.append(names(response))
        url, back = response.context["pages"]["next_url"], response.context["pages"]["previous_url"]
    backwards = [pages[-1]]
    while back:
        response = client.get(back)
        backwards.insert(0, names(response))
        back = response.context["pages"]["previous_url"]
    assert backwards == pages
    return pages


ORDER_KEYS: dict[str, Callable] = {
    "newest": lambda snapshot: (snapshot.created_at, snapshot.pk.hex),
    "oldest": lambda snapshot: (snapshot.created_at, snapshot.pk.hex),
    "name": lambda snapshot: (snapshot.name_key, snapshot.pk.hex),
    "largest": lambda snapshot: (snapshot.size_gb, snapshot.pk.hex),
}


@pytest.mark.both_databases
@pytest.mark.parametrize("sort", SNAPSHOT_ORDERS)
def test_pages_neither_skip_nor_repeat_even_among_equals(sort: str, client: Client, project: Project) -> None:
    now = timezone.now()
    for n in range(47):
        SnapshotFactory(
            volume__project=project,
            volume__size_gb=1 + n % 3,
            created_at=now - timedelta(hours=n // 5),
            name=f"{'Ab'[n % 2]}-{n}",
        )

    pages = walk(client, {"sort": sort})

    expected = sorted(Snapshot.objects.all(), key=ORDER_KEYS[sort], reverse=sort in ("newest", "largest"))
    assert [len(page) for page in pages] == [20, 20, 7]
    assert [name for page in pages for name in page] == [snapshot.name for snapshot in expected]


def test_pages_keep_the_filters(client: Client, project: Project) -> None:
    snapshots_of(project, PAGE_SIZE + 1)
    SnapshotFactory(volume__project=project, failed=True)

    response = client.get(LIST, {"state": "ready", "sort": "name", "q": "snapshot"})
    next_url = response.context["pages"]["next_url"]
    query = parse_qs(urlsplit(next_url).query)

    assert query["state"] == ["ready"]
    assert query["sort"] == ["name"]
    assert query["q"] == ["snapshot"]
    following = client.get(next_url)
    assert len(names(following)) == 1
    assert following.context["pages"]["first_url"] == "/snapshots/?q=snapshot&state=ready&sort=name"


def test_a_page_is_stable_while_snapshots_are_added(client: Client, project: Project) -> None:
    snapshots_of(project, PAGE_SIZE + 5)
    next_url = client.get(LIST).context["pages"]["next_url"]
    before = names(client.get(next_url))

    SnapshotFactory(volume__project=project)

    assert names(client.get(next_url)) == before


@pytest.mark.parametrize(
    "cursor",
    [
        "bogus",
        "~",
        "~2026-01-01",
        "00000000-0000-0000-0000-000000000000",
        "00000000-0000-0000-0000-000000000000~yesterday",
        "00000000-0000-0000-0000-000000000000~0001-01-01T00:00:00+14:00",
        "00000000-0000-0000-0000-000000000000~2026-01-01T00:00:00\x00",
        f"{uuid4()}~1990-01-01T00:00:00+00:00",
    ],
)
@pytest.mark.parametrize("direction", ["after", "before"])
def test_a_bad_or_stale_cursor_shows_the_first_page(
    direction: str, cursor: str, client: Client, project: Project
) -> None:
    snapshots = snapshots_of(project, 3)

    response = client.get(LIST, {direction: cursor})
    assert names(response) == [snapshot.name for snapshot in snapshots]
    is_said = "That page doesn" in response.text
    assert is_said or (direction == "before" and "1990" in cursor)  # all of them are after that cursor


@pytest.mark.parametrize("sort", SNAPSHOT_ORDERS)
@pytest.mark.parametrize("value", ["", "9" * 40, "-5", "x" * 999, "\x00", "2026-01-01T00:00:00+00:00"])
def test_no_value_of_a_cursor_breaks_the_page(sort: str, value: str, client: Client, project: Project) -> None:
    snapshots_of(project, 1)

    assert client.get(LIST, {"sort": sort, "after": f"{uuid4()}~{value}"}).status_code == 200


def test_a_cursor_is_read_back_as_it_was_written() -> None:
    instant, key = datetime(2026, 11, 22, 10, 17, 23, 456789, tzinfo=UTC), uuid4()

    assert SNAPSHOT_ORDERS["newest"].read_cursor(Snapshot, f"{key}~{instant.isoformat()}") == (instant, key)


def test_the_total_is_counted(client: Client, project: Project) -> None:
    snapshots_of(project, PAGE_SIZE + 3)

    assert "23 snapshots" in client.get(LIST).content.decode()


def test_beyond_a_limit_the_total_says_more_than(
    client: Client, project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cng_portal.common.pages.MAX_COUNTED", 22)
    snapshots_of(project, PAGE_SIZE + 3)

    assert "More than 22 snapshots" in client.get(LIST).content.decode()


def test_cards_are_chosen_in_the_url_and_remembered(client: Client, project: Project) -> None:
    snapshots_of(project, 1)

    assert '<ul class="card-grid">' in client.get(LIST, {"view": "cards"}).content.decode()
    assert '<ul class="card-grid">' in client.get(LIST).content.decode()
    assert '<table class="list">' in client.get(LIST, {"view": "table"}).content.decode()
    assert '<table class="list">' in client.get(LIST, {"view": "bogus"}).content.decode()


@pytest.mark.parametrize("params", [{}, {"q": "snapshot"}, {"state": "failed"}, {"view": "cards"}, {"sort": "name"}])
def test_the_fragment_equals_the_same_part_of_the_page(
    params: dict[str, str], client: Client, project: Project
) -> None:
    snapshots_of(project, PAGE_SIZE + 1)

    page = client.get(LIST, params).content.decode()
    fragment = client.get(LIST, params, headers=HTMX).content.decode()

    assert fragment.strip() == part_of(page, "snapshot-list")


@pytest.mark.parametrize("header", ["HX-Boosted", "HX-History-Restore-Request"])
def test_a_boosted_link_or_a_restored_page_gets_the_whole_page(header: str, client: Client) -> None:
    assert "<h1>Snapshots</h1>" in client.get(LIST, headers=HTMX | {header: "true"}).content.decode()


def test_caches_tell_page_and_fragment_apart(client: Client) -> None:
    assert "HX-Request" in client.get(LIST)["Vary"]


def test_only_chosen_filters_are_in_the_url(client: Client, project: Project) -> None:
    snapshots_of(project, 1)
    sent = {"q": "snap", "state": "", "project": "", "location": "", "volume": "", "sort": "newest"}

    response = client.get(LIST, sent, headers=HTMX)

    assert response["HX-Push-Url"] == "/snapshots/?q=snap"


def test_the_same_address_is_not_pushed_twice(client: Client, project: Project) -> None:
    snapshots_of(project, 1)

    response = client.get(LIST, {"q": "snap"}, headers=HTMX | {"HX-Current-URL": "http://testserver/snapshots/?q=snap"})

    assert response["HX-Push-Url"] == "false"


def test_the_menus_of_the_filters_are_read_only_when_they_are_opened(client: Client, project: Project) -> None:
    volume = VolumeFactory(project=project, name="web-01-root")
    SnapshotFactory(volume=volume)

    assert f'value="{volume.pk}"' not in client.get(LIST).text
    panel = client.get(LIST, {"filters": "1"}, headers=HTMX).text
    assert panel.count("<select") == 5
    assert f'<option value="{volume.pk}">web-01-root</option>' in panel


def test_a_chosen_filter_comes_with_the_page(client: Client, project: Project) -> None:
    volume = VolumeFactory(project=project, name="web-01-root")
    SnapshotFactory(volume=volume)

    assert f'<option value="{volume.pk}" selected>' in client.get(LIST, {"volume": volume.pk}).text


def test_without_javascript_a_button_shows_the_filters(client: Client, project: Project) -> None:
    SnapshotFactory(volume__project=project)

    assert '<button class="btn btn-secondary" type="submit" name="filters" value="1">' in client.get(LIST).text
    page = client.get(LIST, {"q": "", "sort": "newest", "filters": "1"}).text
    assert '<details class="menu" open>' in page
    assert page.count("<select") == 6


@pytest.mark.parametrize("path", ["/snapshots/vm/", "/backups/", "/backups/schedules/", "/volumes/", "/instances/"])
def test_every_list_has_such_filters(path: str, client: Client, project: Project) -> None:
    panel = client.get(path, {"filters": "1"}, headers=HTMX).text

    assert "<table" not in panel
    assert f'<option value="{project.pk}">Software</option>' in panel


def row_url(snapshot: Snapshot) -> str:
    return reverse("snapshots:row", args=[snapshot.pk])


@pytest.mark.parametrize("state", ["pending", "creating", "deleting"])
@pytest.mark.parametrize("view", ["table", "cards"])
def test_a_row_polls_while_its_state_is_transient(view: str, state: str, client: Client, project: Project) -> None:
    snapshot = SnapshotFactory(volume__project=project, **{state: True})

    page = client.get(LIST, {"view": view}).content.decode()
    fragment = client.get(row_url(snapshot), {"view": view}, headers=HTMX).content.decode()

    assert f'hx-get="{row_url(snapshot)}?view={view}"' in page
    assert fragment.strip() in page
    assert 'hx-trigger="every 2s, ' in fragment


@pytest.mark.parametrize("state", ["failed", "deleted", None])
def test_a_settled_row_carries_no_trigger_and_is_announced(state: str | None, client: Client, project: Project) -> None:
    snapshot = SnapshotFactory(volume__project=project, **({state: True} if state else {}))

    fragment = unescape(client.get(row_url(snapshot), headers=HTMX).content.decode())

    assert re.findall(r'hx-trigger="([^"]+)"', fragment) in (["toggle"], [])  # of its menu
    assert f">{snapshot.name}: {snapshot.get_state_display()}</div>" in fragment


def test_a_row_shows_the_progress_of_its_capture(client: Client, project: Project) -> None:
    snapshot = SnapshotFactory(volume__project=project, creating=True)
    OperationFactory(snapshot=snapshot, capture=True, running=True, bytes_done=30, bytes_total=100)

    assert 'value="30"' in client.get(row_url(snapshot), headers=HTMX).content.decode()


def test_a_safety_snapshot_shows_the_progress_of_its_restore(client: Client, project: Project) -> None:
    restore = OperationFactory(
        snapshot__volume__project=project,
        restore=True,
        running=True,
        safety_snapshot__creating=True,
        bytes_done=70,
        bytes_total=100,
    )

    assert 'value="70"' in client.get(row_url(restore.safety_snapshot), headers=HTMX).content.decode()


def test_a_row_without_htmx_redirects_to_the_page(client: Client, project: Project) -> None:
    snapshot = SnapshotFactory(volume__project=project)

    assert client.get(row_url(snapshot))["Location"] == reverse("snapshots:snapshot", args=[snapshot.pk])


def test_another_customers_row_is_a_404(client: Client) -> None:
    assert client.get(row_url(SnapshotFactory()), headers=HTMX).status_code == 404


@pytest.mark.both_databases
def test_the_key_query_walks_an_index_of_the_list(client: Client, project: Project) -> None:
    """On SQLite without statistics, which it doesn't gather by itself, and on PostgreSQL with a large table."""
    snapshots_of(project, 3)
    user = project.memberships.get().user
    if connection.vendor == "postgresql":
        connection.cursor().execute("SET LOCAL enable_seqscan = off; SET LOCAL enable_sort = off")

    for order in SNAPSHOT_ORDERS.values():
        mine = listed_snapshots().visible_to(user).filter(deleted_at=None, kind="volume")
        plan = mine.order_by(*order.fields())[:21].explain()
        assert "snapshot_by_" in plan, plan
        assert "TEMP B-TREE" not in plan, plan
        assert "Sort" not in plan, plan


def test_operations_of_others_do_not_show(client: Client, project: Project) -> None:
    OperationFactory(running=True)

    assert Operation.objects.visible_to(project.memberships.get().user).count() == 0
