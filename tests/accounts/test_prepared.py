"""A query that is put together once has to find for everybody what it would find put together anew."""

from collections import OrderedDict
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
from django.db import connection, transaction
from django.db.models import Count, Q, QuerySet
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from cng_portal.accounts import prepared as module
from cng_portal.accounts.models import Project, Role, User
from cng_portal.accounts.prepared import Given, prepared
from tests.factories import MembershipFactory, ProjectFactory, UserFactory, VolumeFactory

pytestmark = [pytest.mark.django_db, pytest.mark.both_databases]

built: list[tuple[Any, ...]] = []


@pytest.fixture(autouse=True)
def nothing_built() -> None:
    built.clear()


@prepared
def projects(user: User, *, since: datetime, but: UUID | None = None) -> QuerySet[Project]:
    built.append((len(user.seen), but is not None))
    found = Project.objects.visible_to(user).filter(created_at__gt=since).select_related("customer")
    return (found.exclude(pk=but) if but else found).order_by("name")


@prepared(skewed=True)
def named(text: str, order: str) -> QuerySet[Project]:
    built.append((order,))
    return Project.objects.filter(Q(name__icontains=text) | Q(name=text)).order_by(order)


@prepared
def some(ids: list[UUID]) -> QuerySet[Project, tuple[Any, ...]]:
    return Project.objects.filter(pk__in=ids).values_list("name").order_by("name")


def person(*names: str, role: str = Role.MEMBER) -> User:
    user = UserFactory()
    for name in names:
        MembershipFactory(user=user, role=role, project=ProjectFactory(name=name))
    return User.objects.get(pk=user.pk)


def test_each_person_finds_their_own_by_one_query_put_together_once() -> None:
    people = [person("a", "b"), person("c", "d"), person("e")]
    since = timezone.now() - timedelta(hours=1)
    with CaptureQueriesContext(connection) as queries:
        found = [[(one.name, one.customer.pk) for one in projects(user, since=since)] for user in people]
    assert [[name for name, _customer in one] for one in found] == [["a", "b"], ["c", "d"], ["e"]]
    assert len(queries) == 2 * len(people), "the roles of each, and the projects with their customers"
    assert built == [(2, False), (1, False)]
    assert projects(people[0], since=timezone.now() + timedelta(hours=1)) == []
    assert [one.name for one in projects(people[1], since=since, but=people[1].seen[0][0])] == ["d"]
    assert built == [(2, False), (1, False), (2, True)]


def test_who_sees_nothing_finds_nothing() -> None:
    person("a")
    since = timezone.now() - timedelta(hours=1)
    assert projects(person(), since=since) == projects(person(), since=since) == []


def test_a_typed_text_is_a_value_also_within_a_pattern() -> None:
    for name in ("Alpha", "alpha beta", "100%", "100x", "a_b", "axb", "it's", "\\"):
        ProjectFactory(name=name)

    def names(text: str, order: str = "name") -> list[str]:
        return sorted(one.name for one in named(Given(text), order))

    assert names("alpha") == ["Alpha", "alpha beta"]
    assert (names("100%"), names("a_b"), names("t'"), names("\\")) == (["100%"], ["a_b"], ["it's"], ["\\"])
    assert names("nothing") == []
    assert built == [("name",)]
    assert [one.name for one in named(Given("alpha"), "-name")] == sorted(names("alpha"), reverse=True)


def test_a_list_of_ids_is_of_any_length() -> None:
    made = [ProjectFactory(name=name) for name in "abc"]
    for count in (0, 1, 3, 2):
        assert some([one.pk for one in made[:count]]) == [(name,) for name in "abc"[:count]]
    assert some([uuid4(), made[1].pk]) == [("b",)]


def test_what_is_found_tells_whether_it_is_the_same_as_before() -> None:
    project = ProjectFactory(name="a")
    first, again = some.found([project.pk]), some.found([project.pk])  # type: ignore[attr-defined]
    assert first.raw == again.raw == [("a",)]
    Project.objects.filter(pk=project.pk).update(name="b")
    changed = some.found([project.pk])  # type: ignore[attr-defined]
    assert (changed.raw, changed.rows, first.rows) == ([("b",)], [("b",)], [("a",)])


def test_many_rows_are_as_django_makes_them() -> None:
    volume = VolumeFactory()
    member = MembershipFactory(project=volume.project)
    VolumeFactory(project=volume.project)

    @prepared
    def counted(user: User) -> QuerySet[Project]:
        return Project.objects.visible_to(user).annotate(volume_count=Count("volumes")).select_related("customer")

    user = User.objects.get(pk=member.user.pk)
    expected = Project.objects.filter(pk=volume.project.pk).annotate(volume_count=Count("volumes")).get()
    (found,) = counted(user)
    assert found.__dict__ | {"_state": None} == expected.__dict__ | {"_state": None}
    assert (found.volume_count, found.customer) == (2, volume.project.customer)  # type: ignore[attr-defined]


def test_what_is_no_argument_is_refused() -> None:
    other = ProjectFactory()

    @prepared
    def with_a_clock() -> QuerySet[Project]:
        return Project.objects.filter(created_at__lt=timezone.now())

    @prepared
    def with_an_id() -> QuerySet[Project]:
        return Project.objects.filter(pk=other.pk)

    @prepared
    def with_a_sum(since: datetime) -> QuerySet[Project]:
        return Project.objects.filter(created_at__lt=since + timedelta(days=1))

    @prepared
    def with_nothing(pk: UUID) -> QuerySet[Project]:
        return Project.objects.all()

    for ask in (with_a_clock, with_an_id):
        with pytest.raises(TypeError, match="is in the SQL and no argument"):
            ask()
    with pytest.raises(TypeError, match="cannot reckon with a time"):
        with_a_sum(timezone.now())
    with pytest.raises(TypeError, match="not in the SQL as it was given"):
        with_nothing(other.pk)
    with pytest.raises(TypeError, match="no list with None"):
        some([None])  # type: ignore[list-item]


@pytest.mark.skipif(connection.vendor != "postgresql", reason="SQLite keeps no plans")
@pytest.mark.django_db(transaction=True)
def test_a_plan_that_a_migration_has_made_useless_is_made_anew() -> None:
    project = ProjectFactory(name="a")
    assert some([project.pk]) == [("a",)]
    with connection.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM pg_prepared_statements WHERE statement LIKE '%accounts_project%'")
        assert cursor.fetchone() == (1,)
        try:
            cursor.execute("ALTER TABLE accounts_project ALTER COLUMN name TYPE varchar(65)")
            assert some([project.pk]) == [("a",)]
            assert some([project.pk]) == [("a",)]
        finally:
            cursor.execute("ALTER TABLE accounts_project ALTER COLUMN name TYPE varchar(64)")
    with transaction.atomic():
        assert some([project.pk]) == [("a",)], "outside a transaction first, or this would fail"


def test_only_so_many_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_SHAPES", 2)
    monkeypatch.setattr(module, "SHAPES", OrderedDict())
    for name in ("Alpha", "Beta"):
        ProjectFactory(name=name)
    for order in ("name", "-name", "pk", "name"):
        assert [one.name for one in named(Given("alph"), order)] == ["Alpha"]
    assert len(module.SHAPES) == 2
    assert built == [("name",), ("-name",), ("pk",), ("name",)], "the oldest went, and was put together again"
