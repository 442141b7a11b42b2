"""Every page, step and state that a user sees, by account, for screenshots.

To add a page, add a line to the function of its account. test_pictures.py fails for a URL without one.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from allauth.account.forms import default_token_generator
from allauth.account.internal.userkit import user_id_to_str
from allauth.account.utils import user_pk_to_url_str
from allauth.mfa.models import Authenticator
from allauth.mfa.recovery_codes.internal.auth import RecoveryCodes
from allauth.mfa.totp.internal.auth import TOTP, generate_totp_secret
from django.template.loader import render_to_string
from django.test import Client
from django.urls import reverse
from django.utils import timezone
from playwright.sync_api import Page

from billing.models import Invoice, PriceVersion
from cng_portal.accounts import roles
from cng_portal.accounts.models import Membership, Role, User
from cng_portal.inventory.models import Location, Volume
from cng_portal.monitoring.models import Process, StorageCheck
from snapshots.models import BackupSchedule, Draft, Drill, Kind, Snapshot, SnapshotLock
from snapshots.wizard import wizard
from tests.browser.filling import BURMESE, GIB, LONG, PASSWORD
from tests.factories import (
    ApplicationCredentialFactory,
    MembershipFactory,
    ProjectFactory,
    UserFactory,
)
from tests.permissions import TABLE

# URLs without a page, and why
UNSEEN = {
    **dict.fromkeys((row.name for row in TABLE["API"]), "JSON"),
    "snapshots:check_name": "a part of the step of the name",
    "snapshots:row": "a part of the lists",
    "snapshots:menu": "a part of the lists",
    "snapshots:schedule_menu": "a part of the lists",
    "snapshots:volume_menu": "a part of the lists",
    "snapshots:cancel": "the same question as that of a snapshot",
    "snapshots:cancel_snapshot": "leads on to the snapshot",
    "snapshots:work": "a part of the bell",
    "notifications:open": "leads on to what the notification is about",
    "snapshots:download_file": "a file",
    "snapshots:download_folder": "a file",
    "snapshots:compare_files_csv": "a file",
    "snapshots:drills_csv": "a file",
    "snapshots:drill_csv": "a file",
    "snapshots:drill_pdf": "a file",
    "snapshots:retry": "leads on to the snapshot; the question stands there",
    "billing:summary_csv": "a file",
    "billing:subscriptions_csv": "a file",
    "billing:credits_csv": "a file",
    "billing:transactions_csv": "a file",
    "billing:usage_csv": "a file",
    "billing:invoice_csv": "a file",
    "billing:invoice_pdf": "a file; the tests of billing look at it",
    "activity:csv": "a file",
    "snapshots:volume_snapshots_csv": "a file",
    "snapshots:vm_snapshots_csv": "a file",
    "snapshots:backups_csv": "a file",
    "snapshots:volumes_csv": "a file",
    "account_confirm_login_code": "switched off",
    "mfa_index": "leads on to the security page",
    "mfa_list_webauthn": "leads on to the security page",
    "mfa_login_webauthn": "data for a script",
    "mfa_download_recovery_codes": "a file",
    "mfa_reauthenticate_webauthn": "the passkey that would be asked for needs a device",
    "admin:login": "leads on to the sign-in",
    "admin:logout": "leads on to the sign-in",
    "admin:autocomplete": "data for a script",
    "admin:jsi18n": "a script",
    "admin:view_on_site": "there are none",
    "admin:auth_user_password_change": "Django's own form",
    "admin:password_change": "Django's own form",
    "admin:password_change_done": "Django's own page",
}


@dataclass(frozen=True)
class Screen:
    """A URL, and an action to perform before the screenshot."""

    address: str
    action: Callable[[Page], object] | None = None
    status: int = 200
    menu: bool = False  # opens over the page, so only the window is captured


Screens = dict[str, Screen]


def submit(page: Page) -> None:
    """Submit the form unchanged, and wait for its errors."""
    page.locator("#main form button.btn-primary[type=submit], #main form button.btn-danger[type=submit]").first.click()
    page.locator(".error-summary").wait_for()


def submit_long_tag(page: Page) -> None:
    page.get_by_label("Add tags").fill(41 * "x")
    submit(page)


def create_credential(page: Page) -> None:
    """Create an application credential; its page shows the secret."""
    page.get_by_label("Name", exact=True).fill("nightly snapshots")
    page.get_by_role("button", name="Create credential").click()
    page.get_by_text("Copy the secret now").wait_for()


def open_menu(selector: str) -> Callable[[Page], object]:
    return lambda page: page.locator(selector).first.click()


def side_menu(page: Page) -> None:
    """Open the menu on a narrow screen; on a wide one it is visible."""
    button = page.locator(".topbar-menu")
    if button.is_visible():
        button.click()


def keys(page: Page) -> None:
    page.keyboard.press("?")


def find(page: Page) -> None:
    """Open the search dialog."""
    page.keyboard.press("Control+k")
    page.get_by_role("searchbox", name="Search everything").fill("db-01")
    page.locator("#find .found-hit").first.wait_for()


def error_page(name: str, **context: Any) -> Callable[[Page], object]:
    """Return an action that shows an error page, which has no URL of its own."""
    html = render_to_string(name, context)

    def show(page: Page) -> None:
        page.route("**/fault/", lambda route: route.fulfill(body=html, content_type="text/html; charset=utf-8"))
        page.goto("/fault/")

    return show


def answered(
    member: Membership, source: Any, kind: Kind = Kind.VOLUME, *, is_scheduled: bool = False, **answers: Any
) -> dict[str, str]:
    """Return {slug: URL} of the wizard with every answer given."""
    draft = wizard.start(member.user, source=source, kind=kind, is_scheduled=is_scheduled)
    draft.name = f"{source.name[:40]}-2026-11-22"
    for name, value in answers.items():
        setattr(draft, name, value)
    draft.save()
    return {slug: wizard.url(draft, slug) for slug in wizard.slugs(draft)}


def new_volume(member: Membership, source: str = "", **answers: Any) -> dict[str, str]:
    """Return {slug: URL} of Create Volume with every answer given, from the snapshot of this name or empty."""
    draft = wizard.start(member.user, kind=Draft.CREATE_VOLUME)
    draft.disk = Snapshot.objects.get(name=source).disks.first() if source else None
    yangon = Location.objects.get(code="1CNG-YGN-AZ01")
    defaults = {"location": yangon, "project": member.project, "size_gb": 100, "name": "uploads"}
    for name, value in (defaults | answers).items():
        setattr(draft, name, value)
    draft.save()
    return {slug: wizard.url(draft, slug) for slug in (*wizard.slugs(draft), "source")}


def of_snapshots(member: Membership) -> Screens:
    data, snapshots = Volume.objects.get(name="db-01-data"), Snapshot.objects
    huge = Volume.objects.get(name=LONG)
    ready, machine = snapshots.get(name="before the update"), snapshots.get(kind=Kind.VM)
    failed = snapshots.get(name="office-files-2026-11-21")
    credential = ApplicationCredentialFactory(
        user=member.user,
        project=member.project,
        name="billing report",
        networks=["203.0.113.0/24"],
        last_used_at=timezone.now(),
        last_used_from="203.0.113.7",
    )
    ids = f"id={ready.pk}&id={failed.pk}&id={snapshots.filter(volume=huge).earliest('created_at').pk}"

    def delete_them(page: Page) -> None:
        page.get_by_label("to confirm").fill("delete 3 snapshots")
        for box in page.get_by_label("Delete the last restore point").all():
            box.check()
        page.get_by_role("button", name="Delete them all").click()
        page.get_by_role("link", name="Back to the snapshots").wait_for()

    pages = {
        "dashboard": Screen("/"),
        "frame-create": Screen("/", open_menu(".topbar-create"), menu=True),
        "frame-bell": Screen("/", open_menu(".bell > summary"), menu=True),
        "frame-person": Screen("/", open_menu(".person-button"), menu=True),
        "frame-menu": Screen("/volumes/", side_menu, menu=True),
        "keys": Screen("/snapshots/", keys, menu=True),
        "search": Screen("/search/?q=db-01"),
        "search-nothing-found": Screen("/search/?q=nothing-like-it"),
        "search-window": Screen("/snapshots/", find, menu=True),
        "snapshots": Screen("/snapshots/?view=table"),
        "snapshots-2": Screen("/snapshots/?view=table&q=2026"),
        "snapshots-selected": Screen("/snapshots/?view=table", open_menu("td .select input")),
        "snapshots-row-menu": Screen("/snapshots/?view=table", open_menu(".row-menu summary"), menu=True),
        "snapshots-filter": Screen("/snapshots/?view=table", open_menu(".toolbar .menu > summary"), menu=True),
        "snapshots-filtered": Screen("/snapshots/?view=table&state=ready&project=" + str(member.project_id)),
        "snapshots-cards": Screen("/snapshots/?view=cards"),
        "snapshots-nothing-found": Screen("/snapshots/?q=nothing"),
        "vm-snapshots": Screen("/snapshots/vm/?view=table"),
        "vm-snapshots-cards": Screen("/snapshots/vm/?view=cards"),
        "delete-many": Screen(f"/snapshots/delete/?{ids}"),
        "delete-many-wrong": Screen(f"/snapshots/delete/?{ids}", submit),
        "volumes": Screen("/volumes/"),
        "volumes-nothing-found": Screen("/volumes/?q=nothing"),
        "volume": Screen(reverse("snapshots:volume", args=[data.pk])),
        "volume-long": Screen(reverse("snapshots:volume", args=[huge.pk])),
        "volumes-row-menu": Screen("/volumes/", open_menu(".row-menu summary"), menu=True),
        "machines": Screen(reverse("snapshots:machines")),
        "machine": Screen(reverse("snapshots:machine", args=[data.vm_id])),
        "machine-long": Screen(reverse("snapshots:machine", args=[huge.vm_id])),
        "limits": Screen("/profile/limits/"),
        "api": Screen(reverse("api:credentials")),
        "api-reference": Screen(reverse("api:reference")),
        "api-new": Screen(reverse("api:new_credential")),
        "api-new-wrong": Screen(reverse("api:new_credential"), submit),
        "api-created": Screen(reverse("api:new_credential"), create_credential),
        "api-revoke": Screen(reverse("api:revoke", args=[credential.pk])),
        "not-there": Screen("/nowhere/", status=404),
    }
    states = {
        "ready": ready,
        "running": snapshots.get(name="office-files-2026-11-22"),
        "failed": failed,
        "machine": machine,
        "waiting": snapshots.get(state="pending"),
        "deleting": snapshots.get(state="deleting"),
        "damaged": snapshots.get(name="damaged since"),
        "restored": snapshots.get(name="restored-from"),
        "long": snapshots.filter(volume=huge).latest("created_at"),
    }
    disk = ready.disks.get()
    folder = reverse("snapshots:folder", args=[ready.pk, disk.pk, 0])
    pages |= {
        "files": Screen(reverse("snapshots:files", args=[ready.pk])),
        "files-folder": Screen(folder),
        "files-search": Screen(f"{folder}?q=random"),
        "files-nothing-found": Screen(f"{folder}?q=nothing"),
        "files-missing": Screen(f"{folder}?path=/nowhere"),
        "files-history": Screen(
            reverse("snapshots:file_history", args=[ready.pk, disk.pk, 0], query={"path": "/sub/deep/random.bin"})
        ),
        "files-compare": Screen(reverse("snapshots:compare_files", args=[ready.pk, disk.pk])),
        "files-of-none": Screen(reverse("snapshots:files", args=[states["damaged"].pk])),
    }
    for name, snapshot in states.items():
        pages[f"snapshot-{name}"] = Screen(reverse("snapshots:snapshot", args=[snapshot.pk]))
    for action in ("rename", "labels", "move", "expiry", "delete", "restore", "new_volume", "verify", "request_drill"):
        address = reverse(f"snapshots:{action}", args=[ready.pk])
        pages[f"act-{action}"] = Screen(address)
    pages["drills"] = Screen(reverse("snapshots:drills"))
    pages["volume-drills"] = Screen(reverse("snapshots:volume_drills", args=[data.pk]))
    pages["machine-drills"] = Screen(reverse("snapshots:machine_drills", args=[data.vm_id]))
    planned = BackupSchedule.objects.visible_to(member.user).present().first()
    assert planned
    pages["schedule-drills"] = Screen(reverse("snapshots:schedule_drills", args=[planned.pk]))
    for drill in Drill.objects.visible_to(member.user):
        pages[f"drill-{drill.result or 'running'}"] = Screen(reverse("snapshots:drill", args=[drill.pk]))
    for name in ("uploads", "old-uploads", "web-01-root"):
        pages[f"volume-{name}"] = Screen(reverse("snapshots:volume", args=[Volume.objects.get(name=name).pk]))
    for action in ("grow", "attach", "detach", "rename", "delete"):
        for name in ("uploads", "db-01-data"):
            address = reverse(f"snapshots:{action}_volume", args=[Volume.objects.get(name=name).pk])
            pages[f"volume-{action}-{name}"] = Screen(address)
    pages["volume-grow-price"] = Screen(
        reverse("snapshots:grow_volume", args=[Volume.objects.get(name="uploads").pk]) + "?size_gb=150"
    )
    software = member.user.projects.get(name="Software")
    MembershipFactory(project=software, user__name="Hla Hla Win", role=Role.VIEWER)
    pages["act-move-to"] = Screen(f"{reverse('snapshots:move', args=[ready.pk])}?project={software.pk}")
    for action in ("restore", "new_volume", "verify"):
        pages[f"act-{action}-damaged"] = Screen(reverse(f"snapshots:{action}", args=[states["damaged"].pk]))
    idle = snapshots.get(name="restored-from")
    for action, snapshot in (("delete", idle), ("restore", ready)):
        pages[f"act-{action}-wrong"] = Screen(reverse(f"snapshots:{action}", args=[snapshot.pk]), submit)
    pages["act-labels-wrong"] = Screen(reverse("snapshots:labels", args=[ready.pk]), submit_long_tag)
    pages["volume-labels"] = Screen(reverse("snapshots:volume_labels", args=[data.pk]))
    pages["tag-snapshots"] = Screen(f"/snapshots/tags/?{ids}")
    pages["tag-volumes"] = Screen(f"/volumes/tags/?id={data.pk}&id={huge.pk}")
    pages["snapshots-tagged"] = Screen(f"/snapshots/?view=table&tag={ready.tags.first().pk}&sort=name")
    pages["act-new_machine"] = Screen(reverse("snapshots:new_machine", args=[machine.pk]))
    pages["delete-many-done"] = Screen(f"/snapshots/delete/?{ids}", delete_them)  # last, because it deletes three
    return pages


def of_wizards(member: Membership) -> Screens:
    data = Volume.objects.get(name="db-01-data")
    pages = {}
    pages["wizard-location-wrong"] = Screen(reverse("snapshots:new"), submit)
    for name, source, kind, answers in (
        ("wizard", data, Kind.VOLUME, {}),
        ("vm-wizard", data.vm, Kind.VM, {}),
        ("backup", data.vm, Kind.BACKUP, {"interval": "weekly", "weekday": 6, "take_one_now": True}),
        ("long-wizard", Volume.objects.get(name=BURMESE), Kind.VOLUME, {}),
    ):
        if kind == Kind.BACKUP:
            answers["at"] = datetime(2026, 1, 1, 1, 30, tzinfo=UTC).time()
        for slug, address in answered(member, source, kind, **answers).items():
            pages[f"{name}-{slug}"] = Screen(address)
    software = member.user.projects.get(name="Software")
    for slug in ("volume", "review"):
        pages[f"wizard-assigned-{slug}"] = Screen(answered(member, data, project=software)[slug])
    draft_urls = answered(member, data, name="before the update")
    pages["wizard-name-wrong"] = Screen(draft_urls["name"])
    pages["backup-schedule-empty"] = Screen(answered(member, data.vm, Kind.BACKUP)["schedule"])
    at = datetime(2026, 1, 1, 1, 30, tzinfo=UTC).time()
    for slug, address in answered(member, data, is_scheduled=True, interval="daily", at=at, retention_count=7).items():
        pages[f"volume-schedule-{slug}"] = Screen(address)
    for slug, address in new_volume(member).items():
        pages[f"volume-wizard-{slug}"] = Screen(address)
    for slug in ("size", "name", "review"):
        pages[f"volume-wizard-copy-{slug}"] = Screen(new_volume(member, "before the update")[slug])
    free = new_volume(member, location=Location.objects.get(code="1CNG-SIN-AZ01"))
    pages["volume-wizard-free-size"] = Screen(free["size"])
    pages["volume-wizard-free-review"] = Screen(free["review"])
    pages["volume-wizard-size-wrong"] = Screen(new_volume(member, size_gb=0)["size"])
    for name in ("new", "new_vm", "new_backup", "new_schedule", "create_volume"):
        pages[f"wizard-begin-{name}"] = Screen(reverse(f"snapshots:{name}"))
    return pages


def of_backups(member: Membership) -> Screens:
    schedules = BackupSchedule.objects
    binned, name_taken = (
        Snapshot.objects.in_bin().get(name=name) for name in ("accounts of the quarter", "before-the-audit")
    )
    binned_volume = Volume.objects.in_bin().get()
    daily, automatic = schedules.get(interval="daily", origin="customer"), schedules.get(origin="automatic")
    paused = schedules.get(interval="monthly")
    copy = Snapshot.objects.filter(kind=Kind.BACKUP).latest("created_at")
    locked = SnapshotLock.objects.get().snapshot
    day = (timezone.now() + timedelta(days=90)).date().isoformat()
    compliance = {"day": day, "mode": "compliance", "cooling_off_hours": "24"}
    pages = {
        "backups": Screen("/backups/?view=table"),
        "backups-cards": Screen("/backups/?view=cards"),
        "backup-copy": Screen(reverse("snapshots:snapshot", args=[copy.pk])),
        "backup-pin": Screen(reverse("snapshots:pin", args=[copy.pk])),
        "lock": Screen(reverse("snapshots:lock", args=[copy.pk])),
        "lock-compliance": Screen(reverse("snapshots:lock", args=[copy.pk], query=compliance)),
        "lock-wrong": Screen(reverse("snapshots:lock", args=[copy.pk], query={"day": "2001-01-01"})),
        "locked": Screen(reverse("snapshots:snapshot", args=[locked.pk])),
        "locked-delete": Screen(reverse("snapshots:delete", args=[locked.pk])),
        "lock-lengthen": Screen(reverse("snapshots:lock", args=[locked.pk])),
        "lock-lift": Screen(reverse("snapshots:lift_lock", args=[locked.pk])),
        "lock-lift-wrong": Screen(reverse("snapshots:lift_lock", args=[locked.pk]), submit),
        "schedule-lock": Screen(reverse("snapshots:lock_schedule", args=[daily.pk])),
        "recycle-bin": Screen("/recycle-bin/"),
        "recycle-bin-nothing-found": Screen("/recycle-bin/?q=nothing"),
        "snapshot-in-bin": Screen(reverse("snapshots:snapshot", args=[binned.pk])),
        "put-back": Screen(reverse("snapshots:put_back", args=[binned.pk])),
        "put-back-name-taken": Screen(reverse("snapshots:put_back", args=[name_taken.pk])),
        "erase": Screen(reverse("snapshots:erase", args=[binned.pk])),
        "erase-wrong": Screen(reverse("snapshots:erase", args=[binned.pk]), submit),
        "recycle-bin-volumes": Screen("/recycle-bin/volumes/"),
        "volume-in-bin": Screen(reverse("snapshots:volume", args=[binned_volume.pk])),
        "put-back-volume": Screen(reverse("snapshots:put_back_volume", args=[binned_volume.pk])),
        "erase-volume": Screen(reverse("snapshots:erase_volume", args=[binned_volume.pk])),
        "schedules": Screen("/backups/schedules/"),
        "schedules-nothing-found": Screen("/backups/schedules/?q=nothing"),
        "schedule": Screen(reverse("snapshots:schedule", args=[daily.pk])),
        "schedule-paused": Screen(reverse("snapshots:schedule", args=[paused.pk])),
        "schedule-automatic": Screen(reverse("snapshots:schedule", args=[automatic.pk])),
        "schedule-edit": Screen(reverse("snapshots:edit_schedule", args=[daily.pk])),
        "schedule-resume": Screen(reverse("snapshots:resume_schedule", args=[paused.pk])),
    }
    of_volume = schedules.get(vm=None)
    pages["schedule-of-volume"] = Screen(reverse("snapshots:schedule", args=[of_volume.pk]))
    for action in ("pause", "run", "delete"):
        pages[f"schedule-{action}"] = Screen(reverse(f"snapshots:{action}_schedule", args=[daily.pk]))
    return pages


def of_billing(member: Membership) -> Screens:
    invoice = Invoice.objects.filter(customer=member.project.customer).latest("month")
    pages = {"billing-invoice": Screen(reverse("billing:invoice", args=[invoice.pk]))}
    for name in ("summary", "subscriptions", "credits", "transactions", "statement", "prices"):
        pages[f"billing-{name}"] = Screen(reverse(f"billing:{name}"))
    pages["billing-subscriptions-inactive"] = Screen(reverse("billing:subscriptions") + "?state=inactive")
    return pages


def of_account(member: Membership) -> Screens:
    other = Membership.objects.get(user__email="thiri@example.com", project=member.project)
    names = ("profile", "security", "sessions", "sign_ins", "approvals")
    pages = {name: Screen(reverse(f"accounts:{name}")) for name in names}
    pages |= {
        "activity": Screen(reverse("activity:log")),
        "notifications": Screen(reverse("notifications:list")),
        "projects": Screen("/projects/"),
        "project": Screen(reverse("project", args=[member.project_id])),
        "new-project": Screen(reverse("new_project")),
        "rename-project": Screen(reverse("rename_project", args=[member.project_id])),
        "archive-project": Screen(reverse("archive_project", args=[member.project_id])),
        "invite": Screen(reverse("accounts:invite", args=[member.project_id])),
        "role": Screen(reverse("accounts:role", args=[other.pk])),
        "remove": Screen(reverse("accounts:remove", args=[other.pk])),
        "email": Screen(reverse("account_email")),
        "password": Screen(reverse("account_change_password")),
        "reauthenticate": Screen(reverse("account_reauthenticate")),
        "app": Screen(reverse("mfa_activate_totp")),
        "passkey": Screen(reverse("mfa_add_webauthn")),
        "sign-out": Screen(reverse("account_logout")),
        "help": Screen("/help/"),
    }
    for slug in (
        "create-volume-snapshot",
        "create-vm-snapshot",
        "create-backup",
        "restore",
        "billing",
        "api",
        "keyboard",
    ):
        pages[f"help-{slug}"] = Screen(reverse("help:guide", args=[slug]))
    return pages


def of_somebody_with_factors(member: Membership) -> Screens:
    """Screens of another owner, who has an app, passkeys and codes."""
    user = Membership.objects.get(user__email="khin@example.com").user
    TOTP.activate(user, generate_totp_secret())
    RecoveryCodes.activate(user)
    key = Authenticator.objects.create(
        user=user, type=Authenticator.Type.WEBAUTHN, data={"name": "Phone", "credential": {}}
    )
    pages = {
        "factors-security": Screen(reverse("accounts:security")),
        "factors-codes": Screen(reverse("mfa_view_recovery_codes")),
        "factors-new-codes": Screen(reverse("mfa_generate_recovery_codes")),
        "factors-app-off": Screen(reverse("mfa_deactivate_totp")),
        "factors-confirm": Screen(reverse("mfa_reauthenticate")),
    }
    for name in ("edit", "remove"):
        pages[f"factors-passkey-{name}"] = Screen(reverse(f"mfa_{name}_webauthn", args=[key.pk]))
    return pages


def of_nobody(member: Membership) -> Screens:
    """Signed out."""
    invitation = member.project.invitations.latest("expires_at")

    def wrong(page: Page) -> None:
        page.locator("input[name=login]").fill("customer@example.com")
        page.locator("input[name=password]").fill("wrong")
        page.locator("form button[type=submit]").first.click()
        page.locator(".error-summary").wait_for()

    pages = {
        "sign-in": Screen(reverse("account_login")),
        "sign-in-wrong": Screen(reverse("account_login"), wrong),
        "sign-up": Screen(reverse("account_signup")),
        "inactive": Screen(reverse("account_inactive")),
        "email-sent": Screen(reverse("account_email_verification_sent")),
        "email-confirm": Screen(reverse("account_confirm_email", args=["no-such-key"])),
        "reset": Screen(reverse("account_reset_password")),
        "reset-sent": Screen(reverse("account_reset_password_done")),
        "reset-link-gone": Screen(reverse("account_reset_password_from_key", args=["0", "none"])),
        "reset-link": Screen(reset_link(member.user), status=302),
        "reset-done": Screen(reverse("account_reset_password_from_key_done")),
        "invitation": Screen(reverse("accounts:invitation", args=[roles.sign_token(invitation)])),
        "invitation-gone": Screen(reverse("accounts:invitation", args=["none"]), status=404),
    }
    errors = {"400": {}, "403_csrf": {}, "500": {}, "503": {"note": "Until 14:00 Yangon time."}}
    for name, context in errors.items():
        pages[f"error-{name}"] = Screen(reverse("account_login"), error_page(f"{name}.html", **context))
    return pages


def of_a_newcomer(_member: Membership) -> Screens:
    """Screens of an account without anything."""
    addresses = {
        "dashboard": "/",
        "snapshots": "/snapshots/",
        "vm-snapshots": "/snapshots/vm/",
        "machines": "/instances/",
        "volumes": "/volumes/",
        "backups": "/backups/",
        "schedules": "/backups/schedules/",
        "wizard": "/snapshots/new/",
        "notifications": "/notifications/",
        "activity": "/profile/activity/",
        "projects": "/projects/",
        "set-password": reverse("account_set_password"),
        **{name: reverse(f"billing:{name}") for name in ("summary", "subscriptions", "credits", "statement")},
    }
    return {f"empty-{name}": Screen(address) for name, address in addresses.items()}


def of_a_viewer(member: Membership) -> Screens:
    ready = Snapshot.objects.get(name="before the update")
    return {
        "viewer-dashboard": Screen("/"),
        "viewer-snapshots": Screen("/snapshots/"),
        "viewer-snapshot": Screen(reverse("snapshots:snapshot", args=[ready.pk])),
        "viewer-projects": Screen("/projects/"),
        "viewer-project": Screen(reverse("project", args=[ready.project_id])),
        "viewer-forbidden": Screen(reverse("snapshots:delete", args=[ready.pk]), status=403),
    }


def of_an_administrator(member: Membership) -> Screens:
    customer, machine = member.project.customer, Volume.objects.get(name="db-01-data").vm
    web = machine.project.vms.get(name="web-01")
    Process.objects.create(kind="worker", host="portal-01", pid=4711)
    Process.objects.create(kind="scheduler", host="portal-02", pid=99, heartbeat_at=timezone.now() - timedelta(hours=3))
    StorageCheck.objects.create(location_id="1CNG-YGN-AZ01", checked_at=timezone.now(), free_bytes=4_000 * GIB)
    StorageCheck.objects.create(
        location_id="1CNG-MDY-AZ01", checked_at=timezone.now(), error="The storage does not answer.", error_count=12
    )

    def switch_many(page: Page) -> None:
        page.locator("#action-toggle").check()
        page.locator("select[name=action]").select_option("switch_many_on")
        page.locator("button[name=index]").click()
        page.get_by_role("heading", name="Switch automatic backups on").wait_for()

    lists = ["inventory_virtualmachine", "inventory_volume", "inventory_location", "billing_package"]
    lists += ["accounts_customer", "accounts_user", "accounts_project", "billing_customeraccount", "billing_invoice"]
    lists += ["snapshots_snapshot", "snapshots_operation", "snapshots_backupschedule", "activity_activity"]
    pages = {f"admin-{name}": Screen(reverse(f"admin:{name}_changelist")) for name in lists}
    package = customer.projects.first() and Location.objects.get(code="1CNG-YGN-AZ01").packages.first()
    objects = {
        "inventory_virtualmachine": machine,
        "inventory_location": machine.location,
        "billing_package": package,
        "accounts_customer": customer,
        "accounts_user": member.user,
        "billing_customeraccount": customer,
        "snapshots_snapshot": Snapshot.objects.get(name="before the update"),
    }
    for name, target in objects.items():
        pages[f"admin-{name}-one"] = Screen(reverse(f"admin:{name}_change", args=[target.pk]))
    for name in ("buy", "grant", "refund", "correct"):
        pages[f"admin-{name}"] = Screen(reverse(f"admin:billing_account_{name}", args=[customer.pk]))
    pages |= {
        "components": Screen("/components/"),
        "admin": Screen("/admin/"),
        "admin-part": Screen(reverse("admin:app_list", args=["billing"])),
        "admin-switch-many": Screen(reverse("admin:inventory_virtualmachine_changelist"), switch_many),
        "admin-delete-backups": Screen(reverse("admin:snapshots_delete_automatic_backups", args=[web.pk])),
        "admin-operations": Screen(reverse("admin:snapshots_operation_overview")),
        "admin-locks": Screen(reverse("admin:snapshots_snapshotlock_changelist")),
        "admin-lift-lock": Screen(reverse("admin:snapshots_lift_lock", args=[SnapshotLock.objects.get().pk])),
        "admin-look-as": Screen(reverse("admin:accounts_impersonate", args=[member.user_id])),
        "admin-new-package": Screen(reverse("admin:billing_package_add")),
        "admin-correct-price": Screen(reverse("admin:billing_price_correct", args=[PriceVersion.objects.first().pk])),
        "admin-new-customer": Screen(reverse("admin:accounts_customer_add")),
    }
    return pages


def while_looking_as(member: Membership) -> Screens:
    return {"looking-dashboard": Screen("/"), "looking-refused": Screen("/accounts/password/change/", status=403)}


Account = tuple[Client, Screens]


def accounts(member: Membership) -> dict[str, Account]:
    """Return {role: (signed-in client, screens)} for an account that is filled already."""
    project = ProjectFactory(name="Default", customer=ProjectFactory().customer)
    newcomer = UserFactory(name="Su Su", email="su@example.com", member_of=project)
    admin = UserFactory(admin=True, name="Support", email="admin@example.com")
    owner = client_of(member.user)
    with_factors = of_somebody_with_factors(member)
    looking = client_of(admin)
    looking.post(reverse("admin:accounts_impersonate", args=[member.user_id]))
    in_project = {each.user.email: each.user for each in Membership.objects.filter(project=member.project)}
    colleague = next(each for each in in_project.values() if each.email.startswith("maung"))
    return {
        "owner": (
            owner,
            of_wizards(member) | of_backups(member) | of_billing(member) | of_account(member) | of_snapshots(member),
        ),
        "somebody with factors": (client_of(in_project["khin@example.com"]), with_factors),
        "nobody": (Client(), of_nobody(member)),
        "newcomer": (client_of(newcomer), of_a_newcomer(member)),
        "viewer": (client_of(in_project["thiri@example.com"]), of_a_viewer(member)),
        "administrator": (client_of(admin), of_an_administrator(member)),
        "half signed in": (
            between_password_and_code(colleague),
            {"second-factor": Screen(reverse("mfa_authenticate"))},
        ),
        "looking": (looking, while_looking_as(member)),
    }


def between_password_and_code(user: User) -> Client:
    user.set_password(PASSWORD)
    user.save()
    TOTP.activate(user, generate_totp_secret())
    client = Client()
    client.post(reverse("account_login"), {"login": user.email, "password": PASSWORD})
    return client


def reset_link(user: User) -> str:
    args = [user_pk_to_url_str(user), default_token_generator.make_token(user)]
    return reverse("account_reset_password_from_key", args=args)


def client_of(user: User) -> Client:
    """Return a client that has just signed in by password, so that no re-authentication is needed."""
    client = Client()
    client.force_login(user)
    session = client.session
    confirmed = {"method": "password", "reauthenticated": True, "at": time.time(), "email": user.email}
    session["account_authentication_methods"] = [confirmed]
    session["account_authentication_methods_user"] = user_id_to_str(user)
    session.save()
    return client
