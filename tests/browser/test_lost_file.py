"""A letter was deleted on the demo's disk: a customer finds it by its history and gets it back, byte for byte."""

from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from django.urls import reverse
from playwright.sync_api import Page, expect

from snapshots.management.commands.demo import make_image, write_files
from tests.factories import MembershipFactory, VolumeFactory
from tests.snapshots.files.images import need, run
from tests.snapshots.files.test_versions import take

pytestmark = pytest.mark.django_db(transaction=True)
LETTER = "minutes/2025-03.md"


@pytest.fixture(params=[True, False], ids=["with JavaScript", "without JavaScript"])
def browser_context_args(browser_context_args: dict, request: pytest.FixtureRequest) -> dict:
    return browser_context_args | {"java_script_enabled": request.param}


def test_a_deleted_letter_comes_back(
    page: Page, sign_in: Callable[..., Any], storage_root: Path, tmp_path: Path
) -> None:
    need("mke2fs", "debugfs", "mkfs.ext4")
    member = MembershipFactory(project__customer__postpaid=True)
    volume = VolumeFactory(project=member.project, name="office-files", size_gb=1)
    files, image = tmp_path / "files", tmp_path / "image"
    files.mkdir()
    write_files(files, "office", volume.name)
    make_image(image, files, 1, uuid4(), label=volume.name)
    before = take(volume, image, storage_root, days_ago=2)
    run("debugfs", "-w", "-R", f"rm {LETTER}", image)
    after = take(volume, image, storage_root, days_ago=1)

    sign_in(member.user)
    page.goto(reverse("snapshots:files", args=[after.snapshot_id]))
    page.get_by_role("link", name="Compare with another snapshot").click()
    removed = page.get_by_role("row").filter(has_text=f"/{LETTER}")
    expect(removed).to_contain_text("Removed")
    removed.get_by_role("link", name="History").click()
    names = f"{before.snapshot.name} and {after.snapshot.name}"
    expect(page.get_by_text(f"between {names}")).to_be_visible()
    with page.expect_download() as download:
        page.get_by_role("link", name=f"Download from {before.snapshot.name}", exact=True).click()
    assert download.value.suggested_filename == "2025-03.md"
    assert Path(download.value.path()).read_bytes() == (files / LETTER).read_bytes()
