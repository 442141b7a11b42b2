"""The maintenance page, shown while a file exists, without using the database."""

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from django.test import Client

if TYPE_CHECKING:
    from pytest_django.fixtures import SettingsWrapper


@pytest.fixture
def note(settings: "SettingsWrapper", tmp_path: Path) -> Path:
    """The maintenance file, in a data folder of its own, because concurrent tests share theirs."""
    settings.DATA_DIR = tmp_path
    return tmp_path / "maintenance"


@pytest.mark.parametrize("path", ["/", "/snapshots/", "/accounts/login/", "/nowhere/"])
def test_while_the_file_is_there_every_page_is_the_maintenance_page(note: Path, path: str) -> None:
    note.write_text("Until 14:00 <Yangon>.\n")

    response = Client().get(path)  # without the mark django_db, a query would fail

    assert response.status_code == 503
    assert response["Retry-After"] == "300"
    html = response.content.decode()
    assert "The portal is under maintenance" in html
    assert "Until 14:00 &lt;Yangon&gt;." in html
    assert "default-src 'self'" in response["Content-Security-Policy"]


@pytest.mark.parametrize("path", ["/identity/v3/auth/tokens", "/volume/1CNG-YGN-AZ01/v3/x/volumes"])
def test_an_api_answers_in_its_own_shape(note: Path, path: str) -> None:
    note.write_text("Until 14:00.")
    response = Client().get(path)
    assert (response.status_code, response["Retry-After"]) == (503, "300")
    [fault] = response.json().values()
    assert (fault["code"], fault["message"]) == (503, "The portal is being maintained. Try again later. Until 14:00.")


@pytest.mark.django_db
def test_an_empty_file_starts_maintenance_and_removing_it_ends_it(note: Path) -> None:
    note.touch()
    assert Client().post("/accounts/login/").status_code == 503
    note.unlink()
    assert Client().get("/accounts/login/").status_code == 200
