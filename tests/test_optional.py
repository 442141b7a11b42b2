"""Decorations of a page that fail are left out, and the page still responds."""

from collections.abc import Callable

import pytest
from django.db import connection
from django.http import HttpResponse
from django.template import Context, Template
from django.test import Client
from django.utils import timezone

from cng_portal.accounts.models import Project
from cng_portal.common.optional import optional
from tests.factories import OperationFactory, ProjectFactory, UserFactory

pytestmark = pytest.mark.django_db

WALLET, BELL, MENU = 'class="wallet"', 'class="menu bell"', 'id="menu"'


@pytest.fixture
def project() -> Project:
    return ProjectFactory()


@pytest.fixture
def client(project: Project, client_for: Callable[..., Client]) -> Client:
    return client_for(UserFactory(member_of=project))


def decorations(answer: HttpResponse) -> set[str]:
    return {part for part in (WALLET, BELL, MENU) if part in answer.text}


def failures(caplog: pytest.LogCaptureFixture) -> list[object]:
    return [record.msg["decoration"] for record in caplog.records if "decoration.failed" in str(record.msg)]


@pytest.mark.both_databases
def test_a_page_answers_without_the_balance_when_its_query_fails(
    client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    with connection.cursor() as cursor:
        cursor.execute("ALTER TABLE billing_wallettransaction RENAME COLUMN amount_micro TO missing")
    answer = client.get("/help/")
    assert (answer.status_code, decorations(answer), failures(caplog)) == (200, {BELL, MENU}, ["balance"])


@pytest.mark.both_databases
def test_a_page_answers_without_the_bell_when_its_query_fails(
    project: Project, client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    OperationFactory(snapshot__volume__project=project, running=True)
    assert decorations(client.get("/help/")) == {WALLET, BELL, MENU}
    with connection.cursor() as cursor:
        cursor.execute("ALTER TABLE snapshots_operation RENAME COLUMN bytes_done TO missing")
    answer = client.get("/help/")
    assert (answer.status_code, decorations(answer), failures(caplog)) == (200, {WALLET, MENU}, ["bell"])


def test_a_failed_value_becomes_the_default(caplog: pytest.LogCaptureFixture) -> None:
    assert optional("ratio", lambda: 1 // 1, 0) == 1
    assert optional("ratio", lambda: 1 // 0, 0) == 0
    assert failures(caplog) == ["ratio"]


def test_a_failed_block_of_a_template_is_left_out(caplog: pytest.LogCaptureFixture) -> None:
    page = Template('{% load i18n %}a{% optional "age" %}b{{ age|relative }}{% endoptional %}c')
    assert page.render(Context({"age": timezone.now()})) == "abjust nowc"
    assert page.render(Context({"age": "yesterday"})) == "ac"
    assert failures(caplog) == ["age"]
