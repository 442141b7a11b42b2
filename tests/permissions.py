"""Who may do what: one line for each address of the portal. `make permissions` writes docs/permissions.md from it, and
test_permissions.py asks every address in every role and holds the answers against these lines.

To add an address: one `Row` below the heading where it belongs, then `make permissions`.
"""

import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

OUT, STRANGER, VIEWER, MEMBER, OWNER, ADMINISTRATOR = ROLES = (
    "signed out",
    "stranger",
    "viewer",
    "member",
    "owner",
    "administrator",
)
# what an address may answer; a form with errors is OK too
OK, SIGN_IN, FORBIDDEN, MISSING, NOT_ALLOWED = "yes", "sign in", "403", "404", "405"

Audience = dict[str, str]
EVERYONE: Audience = dict.fromkeys(ROLES, OK)
SIGNED_IN = EVERYONE | {OUT: SIGN_IN}
# of a thing in a project: an administrator who is no member of it is a stranger as well, and uses Django admin
SEE = SIGNED_IN | {STRANGER: MISSING, ADMINISTRATOR: MISSING}
CHANGE = SEE | {VIEWER: FORBIDDEN}
OWN = CHANGE | {MEMBER: FORBIDDEN}
# of what is one's own: everybody is an owner, a member or a viewer somewhere, or nobody
CHANGE_OWN = SIGNED_IN | {VIEWER: FORBIDDEN, ADMINISTRATOR: FORBIDDEN}
# that there are bills at all is for owners to know
BILLS = SIGNED_IN | {VIEWER: MISSING, MEMBER: MISSING, ADMINISTRATOR: MISSING}
BILL = BILLS | {STRANGER: MISSING}
# what only the viewer of the test's world has: not even an owner gets at what is another person's
ONESELF = SIGNED_IN | dict.fromkeys((STRANGER, MEMBER, OWNER, ADMINISTRATOR), MISSING)
ADMINISTER = SIGNED_IN | dict.fromkeys((STRANGER, VIEWER, MEMBER, OWNER), SIGN_IN)
STAFF = SIGNED_IN | dict.fromkeys((STRANGER, VIEWER, MEMBER, OWNER), MISSING)
NOBODY = dict.fromkeys(ROLES, MISSING)


@dataclass(frozen=True)
class Row:
    """`name` is that of the address with its namespace, `act` what a person does there, in a few words.

    `methods` are those that the view takes; any other is a 405 for who is signed in. `things` says for a parameter of the
    address which thing of the test's world it stands for, where the parameter's own name does not say it; `query` is
    what follows the address, and what a POST sends. `other` has the audience of one method where it is not that of the
    act: {"GET": SEE}.
    """

    name: str
    act: str
    audience: Audience
    methods: str = "GET"
    things: dict[str, str] = field(default_factory=dict)
    other: dict[str, Audience] = field(default_factory=dict)
    query: str = ""

    def takes(self, method: str) -> bool:
        return ("GET" if method == "htmx" else method) in self.methods.split()

    def expected(self, role: str, method: str) -> str:
        answer = self.other.get("GET" if method == "htmx" else method, self.audience)[role]
        return answer if answer == SIGN_IN or self.takes(method) else NOT_ALLOWED


BOTH = "GET POST"
ANY = BOTH
AT_SIGN_IN = EVERYONE | {OUT: SIGN_IN}
MINE_ALONE = SIGNED_IN | dict.fromkeys((STRANGER, VIEWER, MEMBER, OWNER, ADMINISTRATOR), MISSING)
AT_THE_DOOR = SIGNED_IN | dict.fromkeys((STRANGER, VIEWER, MEMBER, OWNER), FORBIDDEN)
LEAVING = SIGNED_IN | {ADMINISTRATOR: NOT_ALLOWED}
OF_MEMBERSHIP = "?app_label=accounts&model_name=membership&field_name=user"
SNAPSHOT = "?id={snapshot.pk}"
INVOICE = {"pk": "invoice"}
ACCOUNT = {"pk": "customer"}
PERSON = {"pk": "person"}
# in the test nobody looks as another person
STAFF_LOOKING = SIGNED_IN | dict.fromkeys((STRANGER, VIEWER, MEMBER, OWNER, ADMINISTRATOR), MISSING)
MACHINE = {"pk": "machine"}
OTHERS = {"membership_id": "other_membership"}
# a link that is none: what is behind one of ours is for who has the message
LINK = NOBODY

TABLE: dict[str, list[Row]] = {
    "Snapshots": [
        Row("dashboard", "See the dashboard", SIGNED_IN),
        Row("snapshots:volume_snapshots", "List volume snapshots", SIGNED_IN),
        Row("snapshots:vm_snapshots", "List VM snapshots", SIGNED_IN),
        Row("snapshots:new", "Begin to take a volume snapshot", CHANGE_OWN, BOTH),
        Row("snapshots:new_vm", "Begin to take a VM snapshot", CHANGE_OWN, BOTH),
        Row("snapshots:wizard", "Answer a step of taking a snapshot", CHANGE, BOTH),
        Row("snapshots:check_name", "Ask whether a name is free", CHANGE),
        Row("snapshots:snapshot", "Look at a snapshot", SEE),
        Row("snapshots:row", "See a snapshot's progress", SEE),
        Row("snapshots:menu", "Open the menu of a snapshot", SEE),
        Row("snapshots:rename", "Rename a snapshot", CHANGE, BOTH),
        Row("snapshots:delete", "Delete a snapshot", CHANGE, BOTH),
        Row("snapshots:delete_many", "Delete many snapshots at once", CHANGE, BOTH, query=SNAPSHOT),
        Row("snapshots:restore", "Restore a snapshot", CHANGE, BOTH),
        Row("snapshots:new_volume", "Make a volume from a snapshot", CHANGE, BOTH),
        Row("snapshots:new_machine", "Make a machine from a VM snapshot", CHANGE, BOTH, {"snapshot_id": "vm_snapshot"}),
        Row("snapshots:verify", "Verify a snapshot", CHANGE, BOTH),
        Row("snapshots:cancel", "Cancel an operation", CHANGE, BOTH),
        Row("snapshots:cancel_snapshot", "Cancel a snapshot that is being taken", CHANGE, BOTH),
        Row("snapshots:retry", "Try again what failed", CHANGE, BOTH, other={"GET": SEE}),
    ],
    "Instances": [
        Row("snapshots:machines", "List instances", SIGNED_IN),
        Row("snapshots:machine", "Look at an instance", SEE),
        Row("snapshots:take_snapshot_of_machine", "Begin to take a snapshot of an instance", CHANGE, "POST"),
    ],
    "Backups": [
        Row("snapshots:backups", "List backups", SIGNED_IN),
        Row("snapshots:schedules", "List the schedules of backups", SIGNED_IN),
        Row("snapshots:new_backup", "Begin to create a backup", CHANGE_OWN, BOTH),
        Row("snapshots:back_up", "Begin to create a backup of an instance", CHANGE, "POST"),
        Row("snapshots:schedule", "Look at a schedule and its runs", SEE),
        Row("snapshots:schedule_menu", "Open the menu of a schedule", SEE),
        Row("snapshots:edit_schedule", "Change a schedule", CHANGE, BOTH),
        Row("snapshots:pause_schedule", "Pause a schedule", CHANGE, BOTH),
        Row("snapshots:resume_schedule", "Resume a schedule", CHANGE, BOTH),
        Row("snapshots:run_schedule", "Run a backup now", CHANGE, BOTH),
        Row("snapshots:delete_schedule", "Delete a schedule", CHANGE, BOTH),
        Row("snapshots:pin", "Pin or unpin a backup", CHANGE, BOTH, {"snapshot_id": "backup"}),
    ],
    "Volumes": [
        Row("snapshots:volumes", "List volumes", SIGNED_IN),
        Row("snapshots:volume", "Look at a volume", SEE),
        Row("snapshots:take_snapshot", "Begin to take a snapshot of a volume", CHANGE, "POST"),
    ],
    "Billing": [
        Row("billing:summary", "See the billing summary", BILLS),
        Row("billing:summary_csv", "Export the costs", BILLS),
        Row("billing:subscriptions", "List subscriptions", BILLS),
        Row("billing:subscriptions_csv", "Export the subscriptions", BILLS),
        Row("billing:credits", "See the infra credits", BILLS),
        Row("billing:credits_csv", "Export the infra credits", BILLS),
        Row("billing:transactions", "List transactions", BILLS),
        Row("billing:transactions_csv", "Export the transactions", BILLS),
        Row("billing:statement", "See the account statement", BILLS),
        Row("billing:usage_csv", "Export the usage", BILLS),
        Row("billing:invoice", "Look at an invoice", BILL, things=INVOICE),
        Row("billing:invoice_csv", "Export an invoice", BILL, things=INVOICE),
        Row("billing:invoice_pdf", "Print an invoice", BILL, things=INVOICE),
    ],
    "Projects and members": [
        Row("projects", "List your projects", SIGNED_IN),
        Row("project", "View a project and its members", SEE),
        Row("new_project", "Create a project", CHANGE_OWN | {MEMBER: FORBIDDEN}, BOTH),
        Row("rename_project", "Rename a project", OWN, BOTH),
        Row("archive_project", "Archive an empty project", OWN, BOTH),
        Row("unarchive_project", "Unarchive a project", OWN, "POST"),
        Row("accounts:invite", "Invite somebody", OWN, BOTH),
        Row("accounts:resend", "Send an invitation again", OWN, "POST", {"invitation_id": "invitation"}),
        Row("accounts:revoke", "Revoke an invitation", OWN, "POST", {"invitation_id": "invitation"}),
        Row("accounts:role", "Change somebody's role", OWN, BOTH, OTHERS),
        Row("accounts:remove", "Remove somebody from a project", OWN, BOTH, OTHERS),
        Row("accounts:invitation", "Accept an invitation by its link", LINK, BOTH),
    ],
    "Oneself": [
        Row("notifications:list", "View notifications", SIGNED_IN),
        Row("snapshots:work", "See what is in progress", SIGNED_IN),
        Row("notifications:open", "Open the page of a notification", ONESELF),
        Row("notifications:mark_all_read", "Mark all notifications as read", SIGNED_IN, "POST"),
        Row("notifications:resend", "Send the e-mail of a notification again", ONESELF, "POST"),
        Row("accounts:profile", "Change one's details", SIGNED_IN, BOTH),
        Row("accounts:choose_theme", "Choose a theme", SIGNED_IN, "POST", query="?theme=dark"),
        Row("accounts:stop_looking", "Stop looking as another person", STAFF_LOOKING, "POST"),
        Row("accounts:security", "See what protects one's sign-in", SIGNED_IN),
        Row("accounts:sessions", "See where one is signed in", SIGNED_IN),
        Row("accounts:end_other_sessions", "End all one's other sessions", SIGNED_IN, "POST"),
        Row("accounts:end_session", "End one of one's other sessions", ONESELF, "POST", {"session_id": "session"}),
        Row("accounts:sign_ins", "See who signed in as oneself", SIGNED_IN),
        Row("activity:log", "See what happened in one's projects", SIGNED_IN),
        Row("activity:csv", "Export what happened in one's projects", SIGNED_IN),
        Row("snapshots:limits", "See the account's limits and their use", SIGNED_IN),
    ],
    "Sign-in": [
        Row("account_login", "Sign in", EVERYONE, BOTH),
        Row("account_logout", "Sign out", SIGNED_IN, BOTH, other={"POST": dict.fromkeys(ROLES, SIGN_IN)}),
        Row("account_inactive", "Read that a sign-in is closed", EVERYONE),
        Row("account_signup", "Read how to get a sign-in", EVERYONE, BOTH),
        Row("account_reauthenticate", "Confirm that it is oneself", SIGNED_IN, BOTH),
        Row("account_email", "Change one's e-mail address", SIGNED_IN, BOTH),
        Row("account_email_verification_sent", "Read that a message was sent", EVERYONE),
        Row("account_confirm_email", "Confirm an e-mail address by its link", EVERYONE, BOTH, other={"POST": NOBODY}),
        Row("account_change_password", "Change one's password", SIGNED_IN, BOTH),
        Row("account_set_password", "Set a first password", SIGNED_IN, BOTH),
        Row("account_reset_password", "Ask for a link to a new password", EVERYONE, BOTH),
        Row("account_reset_password_done", "Read that the link was sent", EVERYONE),
        Row("account_reset_password_from_key", "Choose a new password by the link", EVERYONE, BOTH),
        Row("account_reset_password_from_key_done", "Read that the password is changed", EVERYONE),
        Row("account_confirm_login_code", "Sign in by a code (switched off)", SIGNED_IN, BOTH),
    ],
    "Help": [
        Row("help:index", "Read the guide", SIGNED_IN),
        Row("help:guide", "Read a page of the guide", SIGNED_IN),
    ],
    "Second factors": [
        Row("mfa_index", "Come to the factors", SIGNED_IN, ANY),
        Row("mfa_list_webauthn", "Come to the passkeys", SIGNED_IN, ANY),
        Row("mfa_authenticate", "Give the second factor at sign-in", SIGNED_IN, BOTH),
        Row("mfa_reauthenticate", "Confirm by a code that it is oneself", SIGNED_IN, BOTH),
        Row("mfa_reauthenticate_webauthn", "Confirm by a passkey that it is oneself", SIGNED_IN, BOTH),
        Row(
            "mfa_login_webauthn",
            "Sign in with a passkey",
            EVERYONE,
            BOTH,
            other={"POST": AT_SIGN_IN, "GET": AT_SIGN_IN},
        ),
        Row("mfa_activate_totp", "Set up an authenticator app", SIGNED_IN, BOTH),
        Row("mfa_deactivate_totp", "Switch off one's authenticator app", MINE_ALONE, BOTH),
        Row("mfa_view_recovery_codes", "See one's recovery codes", MINE_ALONE),
        Row("mfa_generate_recovery_codes", "Make new recovery codes", SIGNED_IN, BOTH),
        Row("mfa_download_recovery_codes", "Download one's recovery codes", MINE_ALONE, BOTH),
        Row("mfa_add_webauthn", "Add a passkey", SIGNED_IN, BOTH),
        Row("mfa_edit_webauthn", "Rename one's passkey", SIGNED_IN, BOTH, {"pk": "passkey"}),
        Row("mfa_remove_webauthn", "Remove one's passkey", SIGNED_IN, BOTH, {"pk": "passkey"}),
    ],
    "Django admin": [
        Row("admin:index", "See the support desk", ADMINISTER, BOTH),
        Row("admin:login", "Come to the support desk's door", AT_THE_DOOR, BOTH),
        Row("admin:logout", "Leave the support desk", SIGNED_IN, BOTH, other={"GET": LEAVING}),
        Row("admin:autocomplete", "Look for people, projects and the like in a form", ADMINISTER, query=OF_MEMBERSHIP),
        Row("components", "See every component in every state", STAFF, BOTH),
        Row("admin:jsi18n", "Read the words of the support desk's scripts", ADMINISTER),
        Row("admin:app_list", "See a part of the support desk", ADMINISTER, BOTH),
        Row("admin:auth_user_password_change", "Set another person's password", ADMINISTER, BOTH),
        Row("admin:password_change", "Change one's own password", ADMINISTER, BOTH),
        Row("admin:password_change_done", "Read that one's password is changed", ADMINISTER),
        Row("admin:accounts_look_as", "Look at the portal as a customer's person does", ADMINISTER, BOTH, PERSON),
        Row("admin:billing_account_buy", "Add bought credits", ADMINISTER, BOTH, ACCOUNT),
        Row("admin:billing_account_grant", "Grant credits", ADMINISTER, BOTH, ACCOUNT),
        Row("admin:billing_account_refund", "Refund credits", ADMINISTER, BOTH, ACCOUNT),
        Row("admin:snapshots_switch", "Switch automatic backups", ADMINISTER, "POST", MACHINE),
        Row(
            "admin:snapshots_delete_automatic_backups",
            "Delete automatic backups",
            ADMINISTER,
            BOTH,
            MACHINE,
        ),
        Row("admin:billing_account_correct", "Correct a balance", ADMINISTER, BOTH, ACCOUNT),
        Row("admin:snapshots_operation_overview", "See how the work goes and what to do about failures", ADMINISTER),
    ],
}

# --- docs/permissions.md -------------------------------------------------------------------------------------------------

WRITTEN = Path(__file__).resolve().parent.parent / "docs" / "permissions.md"
SIGNS = {OK: "✓", SIGN_IN: "", FORBIDDEN: "403", MISSING: "404"}
# the pages that Django admin makes of a model, and who decides about them
MODEL_PAGES = {
    "changelist": "view",
    "change": "view",
    "history": "view",
    "add": "add",
    "delete": "delete",
}

INTRODUCTION = """\
# Who may do what

Written by `make permissions` from `tests/permissions.py`; `tests/test_permissions.py` asks every address of the portal in
every role, by GET, by POST and by htmx, and fails when an answer differs, when an address has no line there, or when this
page is stale.

A person has one role in each project: **viewers** look, **members** take, restore and delete as well, **owners** also see
what it costs and decide who is in. A **stranger** owns a project of another customer, and nothing tells a stranger that
a thing exists: what is foreign and what is not there get the same 404. An **administrator** is a stranger in projects too,
and works in Django admin.

✓ may; an empty cell leads to the sign-in; 403 says which role is missing; 404 hides that there is anything. Where the
address names no thing, ✓ means: with what is one's own.
"""

FIELDS = """\
## Which fields

Whoever sees a thing sees all of its fields, and whoever may change it changes what its form has, and nothing that is sent
besides. Beyond that:

| field | seen by | changed by |
|---|---|---|
| wallet, what was spent, invoices | owners; administrators | administrators, by a transaction with a reason |
| the price of one thing that one takes or has | who sees the thing | administrators, from a time in the future on |
| state, size, checksum, times of a snapshot or backup | who sees it | the portal alone |
| name of a snapshot, whether a backup is pinned | who sees it | members and owners, until it is being deleted |
| role of a person | who is in the project | owners of the project, never so that none is left; administrators |
| e-mail address of a colleague | who is in a project with them | themselves, after a confirmation; administrators |
| name, zone, theme | name: colleagues; the others themselves | themselves |
| quotas | who is in the project | administrators |
| automatic backups of a machine | who sees the machine | administrators |
| password, secrets of factors | nobody | themselves; administrators set or take away, which is told |
| number and currency of a customer, code of a location, customer of a project | who sees it | nobody, once it is there |
| what makes an administrator (`is_staff`, `is_superuser`, groups, permissions) | administrators | superusers |
"""


def as_markdown() -> str:
    lines = [INTRODUCTION]
    for heading, rows in TABLE.items():
        lines += [f"## {heading}", "", *header("what", *ROLES)]
        for row in rows:
            shown = SIGNED_IN if row.audience is ONESELF else row.audience
            lines.append(f"| {row.act} | " + " | ".join(SIGNS[shown[role]] for role in ROLES) + " |")
        lines.append("")
    lines += ["## What administrators do with each kind of row", "", *header("kind", "look", "add", "change", "delete")]
    for name, permissions in sorted(admin_permissions()):
        lines.append(f"| {name} | " + " | ".join("✓" if allowed else "–" for allowed in permissions) + " |")
    return "\n".join([*lines, "", FIELDS])


def header(*columns: str) -> list[str]:
    return ["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]


def admin_permissions() -> Iterator[tuple[str, list[bool]]]:
    from django.contrib import admin
    from django.contrib.auth import get_user_model
    from django.test import RequestFactory

    request = RequestFactory().get("/admin/")
    request.user = get_user_model()(is_staff=True, is_superuser=True, is_active=True)
    for model, model_admin in admin.site._registry.items():
        may = model_admin.get_model_perms(request)
        yield str(model._meta.verbose_name), [may[act] for act in ("view", "add", "change", "delete")]


if __name__ == "__main__":
    import os

    import django

    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "cng_portal.settings")
    django.setup()
    WRITTEN.write_text(as_markdown())
    sys.stdout.write(f"{WRITTEN.relative_to(Path.cwd())} is written.\n")
