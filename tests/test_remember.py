"""What is rendered once must not be shown where it would be rendered differently."""

import re
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings
from django.db import connection
from django.template import Context, Template, TemplateSyntaxError
from django.test import Client
from django.utils import timezone, translation
from django.utils.safestring import mark_safe

from cng_portal.accounts.models import User
from cng_portal.accounts.preferences import as_read_by
from cng_portal.templatetags.remember import STORE, remembered
from snapshots.models import Snapshot
from tests.factories import MembershipFactory, SnapshotFactory, UserFactory, VolumeFactory

TEMPLATES = Path(settings.BASE_DIR) / "templates"
REMEMBERED = re.compile(r'{% remember "([^"]+)"')
INCLUDED = re.compile(r'{% (?:include|remember) "([^"]+)"')
# what does not follow from the inputs, the language, the zone and the format of dates
ELSEWHERE = re.compile(
    r"{%-? *(now|csrf_token|lorem|random)\b|\b(request|user|messages|perms)\b[.|% ]|\|(random|since|timesince|timeuntil)\b"
)


def code_of(name: str) -> str:
    return re.sub(r"{% comment %}.*?{% endcomment %}", "", (TEMPLATES / name).read_text(), flags=re.DOTALL)


def parts(name: str) -> set[str]:
    """The template and all that it includes."""
    return {name}.union(*(parts(one) for one in INCLUDED.findall(code_of(name))))


def remembered_templates() -> list[str]:
    return sorted({name for page in TEMPLATES.rglob("*.html") for name in REMEMBERED.findall(page.read_text())})


@pytest.mark.parametrize("name", remembered_templates())
def test_what_is_remembered_reads_neither_the_clock_nor_the_request(name: str) -> None:
    for part in parts(name):
        text = code_of(part)
        assert not (found := ELSEWHERE.search(text)), f"{part}: {found}"
        assert "|relative" not in text or part == "partials/when.html", part
        for when in re.findall(r'{% include "partials/when.html" ([^%]*)%}', text):
            assert "ago=" in when, f"{part} says how long ago something was: give it as an input"


def test_equal_inputs_are_rendered_once_and_others_anew() -> None:
    rendered: list[Any] = []

    def render(value: Any) -> str:
        return str(
            remembered(("test of equal inputs", value), lambda: rendered.append(value) or mark_safe(str(len(rendered))))
        )

    values = [
        1,
        True,
        "1",
        mark_safe("1"),
        "<b>",
        mark_safe("<b>"),
        None,
        "None",
        {"a": 1},
        {"a": [1]},
        {"b": 1},
        ("a", "b"),
        ("a, b",),
    ]
    assert [render(value) for value in values] == [str(1 + number) for number in range(len(values))]
    assert [render(value) for value in values] == [str(1 + number) for number in range(len(values))]


def test_each_reader_gets_their_own(db: None) -> None:
    user = UserFactory(date_format="y-MM-dd")
    page = Template('{% remember "partials/when.html" value=value ago="long ago" %}')
    value = timezone.now() - timedelta(days=3)
    plain = page.render(Context({"value": value}))
    with translation.override("my"):
        assert page.render(Context({"value": value})) != plain
    with as_read_by(user):
        assert page.render(Context({"value": value})) != plain
    assert page.render(Context({"value": value})) == plain


def test_what_nobody_can_tell_apart_is_rendered_each_time() -> None:
    counter = iter("ab")
    assert [remembered(object(), lambda: mark_safe(next(counter))) for _look in "12"] == ["a", "b"]


def test_the_tag_takes_the_name_of_a_template_and_inputs() -> None:
    with pytest.raises(TemplateSyntaxError):
        Template("{% remember name value=1 %}")


@pytest.mark.django_db
def test_what_asked_the_database_is_not_remembered() -> None:
    def ask() -> Any:
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1")
        return mark_safe(str(next(counter)))

    counter = iter("ab")
    assert [remembered("test of asking", ask), remembered("test of asking", ask)] == ["a", "b"]


@pytest.mark.django_db
def test_every_change_of_what_a_row_shows_is_shown(client_for: Callable[[User], Client]) -> None:
    member = MembershipFactory()
    volume = VolumeFactory(project=member.project)
    snapshot = SnapshotFactory(volume=volume)
    client = client_for(member.user)

    def row() -> str:
        return client.get("/snapshots/").text.split(f'<tr id="snapshot-{snapshot.pk}"')[1].split("</tr>")[0]

    seen = {row()}
    changes: list[tuple[Any, dict[str, Any]]] = [
        (Snapshot.objects.filter(pk=snapshot.pk), {"name": "renamed", "name_key": "renamed"}),
        (Snapshot.objects.filter(pk=snapshot.pk), {"size_gb": snapshot.size_gb + 1}),
        (Snapshot.objects.filter(pk=snapshot.pk), {"made_outside": True}),
        (Snapshot.objects.filter(pk=snapshot.pk), {"missing_since": timezone.now()}),
        (Snapshot.objects.filter(pk=snapshot.pk), {"created_at": snapshot.created_at - timedelta(days=1)}),
        (type(volume).objects.filter(pk=volume.pk), {"name": "other volume"}),
        (type(volume).objects.filter(pk=volume.pk), {"deleted_at": timezone.now()}),
        (type(member.project).objects.filter(pk=member.project.pk), {"name": "other project"}),
        (type(member).objects.filter(pk=member.pk), {"role": "viewer"}),
    ]
    for number, (rows, values) in enumerate(changes, start=2):
        assert rows.update(**values) == 1
        seen.add(row())
        assert len(seen) == number, f"{values} is not seen"
    before = len(STORE._cache)  # type: ignore[attr-defined]  # of LocMemCache
    row()
    assert len(STORE._cache) == before, "nothing has changed, so nothing is rendered"  # type: ignore[attr-defined]


BLOCK = re.compile(r"{% remembered \w+ %}(.*?){% endremembered %}", re.DOTALL)


@pytest.mark.parametrize(
    "page", [p.relative_to(TEMPLATES).as_posix() for p in TEMPLATES.rglob("*.html") if BLOCK.search(p.read_text())]
)
def test_a_remembered_block_reads_nothing_of_the_request_but_its_address(page: str) -> None:
    for block in BLOCK.findall(code_of(page)):
        texts = [
            block.replace("request.path", ""),
            *(code_of(part) for name in INCLUDED.findall(block) for part in parts(name)),
        ]
        for text in texts:
            assert not (found := ELSEWHERE.search(text)), f"{page}: {found}"


def test_a_block_is_rendered_once_for_what_it_shows() -> None:
    page = Template("{% remembered shown %}{% for row in rows %}{{ row }}{% endfor %}{% endremembered %}")
    asked: list[str] = []

    def rows(text: str) -> str:
        asked.append(text)
        return text

    def look(shown: str) -> str:
        return page.render(Context({"shown": shown, "rows": lambda: rows(f"seen of {shown}")}))

    assert [look("a"), look("a"), look("b"), look("a")] == ["seen of a", "seen of a", "seen of b", "seen of a"]
    assert asked == ["seen of a", "seen of b"]
    assert [look(""), look("")] == ["seen of ", "seen of "] and len(asked) == 4, "nothing is told of what it shows"


@pytest.mark.django_db
def test_a_list_shows_at_once_what_has_changed(client_for: Callable[[User], Client]) -> None:
    member = MembershipFactory()
    volume = VolumeFactory(project=member.project)
    snapshot = SnapshotFactory(volume=volume, name="one")
    client = client_for(member.user)

    def page(query: str = "") -> str:
        return client.get(f"/snapshots/{query}").text

    assert page() and ">one<" in page()
    Snapshot.objects.filter(pk=snapshot.pk).update(name="two", name_key="two")
    assert ">two<" in page() and ">one<" not in page()
    type(volume).objects.filter(pk=volume.pk).update(name="scratch")
    assert "scratch" in page()
    SnapshotFactory(volume=volume, name="three")
    assert ">three<" in page() and "2 snapshots" in page()
    assert ">two<" not in page("?q=three") and "data-select-all" in page()
    type(member).objects.filter(pk=member.pk).update(role="viewer")
    assert "data-select-all" not in page(), "who may only look has nothing to select"
    type(member).objects.filter(pk=member.pk).delete()
    assert ">two<" not in page()
