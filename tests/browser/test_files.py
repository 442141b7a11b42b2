"""Downloads of files in a real browser."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from django.urls import reverse
from playwright.sync_api import Page, expect

from tests.browser.filling import put_files
from tests.factories import MembershipFactory, SnapshotFactory
from tests.snapshots.files.images import need

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.mark.parametrize("link", ["Download folder", "Download plain.txt"])
def test_a_download_leaves_its_page_at_rest(
    link: str, page: Page, sign_in: Callable[..., Any], storage_root: Path
) -> None:
    """The progress bar of the next page used to run forever."""
    need("mke2fs")
    member = MembershipFactory(project__customer__postpaid=True)
    snapshot = SnapshotFactory(volume__project=member.project, volume__size_gb=1)
    put_files(snapshot, storage_root)
    sign_in(member.user)
    page.goto(reverse("snapshots:folder", args=[snapshot.pk, snapshot.disks.get().pk, 0]))
    with page.expect_download() as download:
        page.get_by_role("link", name=link, exact=True).click()
    assert download.value.failure() is None
    expect(page.locator("html.is-leaving")).to_have_count(0)
