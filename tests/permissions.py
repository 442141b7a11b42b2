"""The permission table: one row for each URL of the portal. `make permissions` writes docs/permissions.md from it, and
test_permissions.py requests every URL in every role and compares the responses.

To add a URL: add a `Row` below its heading, then run `make permissions`.
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
# Possible responses; a form with errors is OK, too.
OK, SIGN_IN, FORBIDDEN, MISSING, NOT_ALLOWED = "yes", "sign in", "403", "404", "405"

Audience = dict[str, str]
EVERYONE: Audience = dict.fromkeys(ROLES, OK)
SIGNED_IN = EVERYONE | {OUT: SIGN_IN}
# For an object in a project. An administrator who is not a member is a stranger, and uses Django admin.
SEE = SIGNED_IN | {STRANGER: MISSING, ADMINISTRATOR: MISSING}
CHANGE = SEE | {VIEWER: FORBIDDEN}
# Viewers see that there is a snapshot, not what is in it.
READ_FILES = CHANGE
OWN = CHANGE | {MEMBER: FORBIDDEN}
# For the user's own data: each user is an owner, a member or a viewer somewhere, or none.
CHANGE_OWN = SIGNED_IN | {VIEWER: FORBIDDEN, ADMINISTRATOR: FORBIDDEN}
# Only owners learn that there are bills.
BILLS = SIGNED_IN | {VIEWER: MISSING, MEMBER: MISSING, ADMINISTRATOR: MISSING}
BILL = BILLS | {STRANGER: MISSING}
# For objects of the fixtures' viewer: not even an owner reaches another user's.
ONESELF = SIGNED_IN | dict.fromkeys((STRANGER, MEMBER, OWNER, ADMINISTRATOR), MISSING)
# Whoever is signed in to the portal, an API asks for a token of its own: tests/snapshots/api/ has what each may do.
BY_TOKEN, BAD_REQUEST = dict.fromkeys(ROLES, "401"), dict.fromkeys(ROLES, "400")
# Of a member: an owner of the project revokes it, too.
REVOKE_CREDENTIAL = ONESELF | {MEMBER: OK, OWNER: OK, VIEWER: MISSING}
ADMINISTER = SIGNED_IN | dict.fromkeys((STRANGER, VIEWER, MEMBER, OWNER), SIGN_IN)
STAFF = SIGNED_IN | dict.fromkeys((STRANGER, VIEWER, MEMBER, OWNER), MISSING)
NOBODY = dict.fromkeys(ROLES, MISSING)


@dataclass(frozen=True)
class Row:
    """`name` is the URL's name with its namespace, `action` what a user does there.

    `methods` are those that the view accepts; any other is a 405 for signed-in users. `objects` maps URL parameters to the
    fixtures' objects where the parameter's name doesn't; `query` is the query string, and the body of a POST. `other` has
    the audience of a method that differs from the row's: {"GET": SEE}.
    """

    name: str
    action: str
    audience: Audience
    methods: str = "GET"
    objects: dict[str, str] = field(default_factory=dict)
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
USER = {"pk": "user"}
# No test user is impersonating anyone.
IMPERSONATOR = SIGNED_IN | dict.fromkeys((STRANGER, VIEWER, MEMBER, OWNER, ADMINISTRATOR), MISSING)
MACHINE = {"pk": "machine"}
OTHERS = {"membership_id": "other_membership"}
# An invalid link; a valid one is for the e-mail's recipient.
LINK = NOBODY

TABLE: dict[str, list[Row]] = {
    "Snapshots": [
        Row("dashboard", "View the dashboard", SIGNED_IN),
        Row("search", "Search everything you can see", SIGNED_IN),
        Row("snapshots:volume_snapshots", "List volume snapshots", SIGNED_IN),
        Row("snapshots:volume_snapshots_csv", "Export volume snapshots", SIGNED_IN),
        Row("snapshots:vm_snapshots", "List VM snapshots", SIGNED_IN),
        Row("snapshots:vm_snapshots_csv", "Export VM snapshots", SIGNED_IN),
        Row("snapshots:new", "Start taking a volume snapshot", CHANGE_OWN, BOTH),
        Row("snapshots:new_vm", "Start taking a VM snapshot", CHANGE_OWN, BOTH),
        Row("snapshots:wizard", "Complete a step of taking a snapshot", CHANGE, BOTH),
        Row("snapshots:check_name", "Check whether a name is available", CHANGE),
        Row("snapshots:snapshot", "View a snapshot", SEE),
        Row("snapshots:row", "View a snapshot's progress", SEE),
        Row("snapshots:menu", "Open a snapshot's menu", SEE),
        Row("snapshots:labels", "Change a snapshot's tags and note", CHANGE, BOTH),
        Row("snapshots:tag_snapshots", "Tag several snapshots", CHANGE, BOTH, query=SNAPSHOT),
        Row("snapshots:rename", "Rename a snapshot", CHANGE, BOTH),
        Row("snapshots:move", "Move a snapshot to another project", CHANGE, BOTH),
        Row("snapshots:expiry", "Set the expiry date of a snapshot", CHANGE, BOTH),
        Row("snapshots:lock", "Lock a snapshot, or lengthen its lock", CHANGE, BOTH),
        Row("snapshots:lift_lock", "Lift the lock of a snapshot", OWN, BOTH, {"snapshot_id": "locked"}),
        Row("snapshots:delete", "Delete a snapshot", CHANGE, BOTH),
        Row("snapshots:delete_many", "Delete several snapshots", CHANGE, BOTH, query=SNAPSHOT),
        Row("snapshots:restore", "Restore a snapshot", CHANGE, BOTH),
        Row("snapshots:new_volume", "Create a volume from a snapshot", CHANGE, BOTH),
        Row(
            "snapshots:new_machine",
            "Create an instance from a VM snapshot",
            CHANGE,
            BOTH,
            {"snapshot_id": "vm_snapshot"},
        ),
        Row("snapshots:verify", "Verify a snapshot", CHANGE, BOTH),
        Row("snapshots:request_drill", "Start a restore drill", CHANGE, BOTH),
        Row("snapshots:drills", "List restore drills", SIGNED_IN),
        Row("snapshots:drills_csv", "Export restore drills", SIGNED_IN),
        Row("snapshots:drill", "View a restore drill", SEE),
        Row("snapshots:drill_csv", "Export a restore drill", SEE),
        Row("snapshots:drill_pdf", "Download a restore drill as PDF", SEE),
        Row("snapshots:volume_drills", "View and plan restore drills of a volume", CHANGE, BOTH, other={"GET": SEE}),
        Row(
            "snapshots:machine_drills", "View and plan restore drills of an instance", CHANGE, BOTH, other={"GET": SEE}
        ),
        Row(
            "snapshots:schedule_drills", "View and plan restore drills of a schedule", CHANGE, BOTH, other={"GET": SEE}
        ),
        Row("snapshots:files", "List the disks and partitions in a snapshot", READ_FILES),
        Row("snapshots:folder", "Browse and search the files in a snapshot", READ_FILES),
        Row("snapshots:download_file", "Download a file from a snapshot", READ_FILES),
        Row("snapshots:download_folder", "Download a folder from a snapshot", READ_FILES),
        Row("snapshots:file_history", "List the snapshots that hold a file", READ_FILES),
        Row("snapshots:compare_files", "Compare the files of two snapshots", READ_FILES),
        Row("snapshots:compare_files_csv", "Download what changed between two snapshots", READ_FILES),
        Row("snapshots:cancel", "Cancel an operation", CHANGE, BOTH),
        Row("snapshots:cancel_snapshot", "Cancel taking a snapshot", CHANGE, BOTH),
        Row("snapshots:retry", "Retry a failed operation", CHANGE, BOTH, other={"GET": SEE}),
        Row("snapshots:recycle_bin", "List the recycle bin", SIGNED_IN),
        Row("snapshots:put_back", "Put a snapshot back from the recycle bin", CHANGE, BOTH, {"snapshot_id": "binned"}),
        Row(
            "snapshots:erase", "Delete a snapshot in the recycle bin for good", CHANGE, BOTH, {"snapshot_id": "binned"}
        ),
        Row("snapshots:volumes_in_bin", "List the volumes in the recycle bin", SIGNED_IN),
        Row(
            "snapshots:put_back_volume",
            "Put a volume back from the recycle bin",
            CHANGE,
            BOTH,
            {"volume_id": "binned_volume"},
        ),
        Row(
            "snapshots:erase_volume",
            "Delete a volume in the recycle bin for good",
            CHANGE,
            BOTH,
            {"volume_id": "binned_volume"},
        ),
    ],
    "Instances": [
        Row("snapshots:machines", "List instances", SIGNED_IN),
        Row("snapshots:machine", "View an instance", SEE),
        Row("snapshots:take_snapshot_of_machine", "Start taking a snapshot of an instance", CHANGE, "POST"),
    ],
    "Backups": [
        Row("snapshots:backups", "List backups", SIGNED_IN),
        Row("snapshots:backups_csv", "Export backups", SIGNED_IN),
        Row("snapshots:schedules", "List backup schedules", SIGNED_IN),
        Row("snapshots:keep_removing", "Let the portal remove what was kept before an unusual change", CHANGE, "POST"),
        Row("snapshots:new_schedule", "Start scheduling snapshots of a volume", CHANGE_OWN, BOTH),
        Row("snapshots:new_backup", "Start creating a backup", CHANGE_OWN, BOTH),
        Row("snapshots:back_up", "Start creating a backup of an instance", CHANGE, "POST"),
        Row("snapshots:schedule", "View a schedule and its runs", SEE),
        Row("snapshots:schedule_menu", "Open a schedule's menu", SEE),
        Row("snapshots:edit_schedule", "Change a schedule", CHANGE, BOTH),
        Row("snapshots:lock_schedule", "Lock what a schedule takes", CHANGE, BOTH),
        Row("snapshots:pause_schedule", "Pause a schedule", CHANGE, BOTH),
        Row("snapshots:resume_schedule", "Resume a schedule", CHANGE, BOTH),
        Row("snapshots:run_schedule", "Run a backup now", CHANGE, BOTH),
        Row("snapshots:delete_schedule", "Delete a schedule", CHANGE, BOTH),
        Row("snapshots:pin", "Pin or unpin a backup", CHANGE, BOTH, {"snapshot_id": "backup"}),
    ],
    "Volumes": [
        Row("snapshots:volumes", "List volumes", SIGNED_IN),
        Row("snapshots:volumes_csv", "Export volumes", SIGNED_IN),
        Row("snapshots:create_volume", "Start creating a volume", CHANGE_OWN, BOTH),
        Row(
            "snapshots:volume_wizard", "Complete a step of creating a volume", CHANGE, BOTH, {"draft_id": "new_volume"}
        ),
        Row("snapshots:volume", "View a volume", SEE),
        Row("snapshots:volume_labels", "Change a volume's tags and note", CHANGE, BOTH),
        Row("snapshots:tag_volumes", "Tag several volumes", CHANGE, BOTH, query="?id={snapshot.volume_id}"),
        Row("snapshots:take_snapshot", "Start taking a snapshot of a volume", CHANGE, "POST"),
        Row("snapshots:schedule_snapshots", "Start scheduling snapshots of a volume", CHANGE, "POST"),
        Row("snapshots:volume_menu", "Open a volume's menu", SEE),
        Row("snapshots:grow_volume", "Grow a volume", CHANGE, BOTH),
        Row("snapshots:attach_volume", "Attach a volume to an instance", CHANGE, BOTH),
        Row("snapshots:detach_volume", "Detach a volume from its instance", CHANGE, BOTH),
        Row("snapshots:rename_volume", "Rename a volume", CHANGE, BOTH),
        Row("snapshots:delete_volume", "Delete a volume", CHANGE, BOTH),
    ],
    "Billing": [
        Row("billing:summary", "View the billing summary", BILLS),
        Row("billing:summary_csv", "Export costs", BILLS),
        Row("billing:subscriptions", "List subscriptions", BILLS),
        Row("billing:subscriptions_csv", "Export subscriptions", BILLS),
        Row("billing:prices", "View the prices", SIGNED_IN),
        Row("billing:credits", "View infra credits", BILLS),
        Row("billing:credits_csv", "Export infra credits", BILLS),
        Row("billing:transactions", "List transactions", BILLS),
        Row("billing:transactions_csv", "Export transactions", BILLS),
        Row("billing:statement", "View the account statement", BILLS),
        Row("billing:usage_csv", "Export usage", BILLS),
        Row("billing:invoice", "View an invoice", BILL, objects=INVOICE),
        Row("billing:invoice_csv", "Export an invoice", BILL, objects=INVOICE),
        Row("billing:invoice_pdf", "Download an invoice as PDF", BILL, objects=INVOICE),
    ],
    "Projects and members": [
        Row("projects", "List your projects", SIGNED_IN),
        Row("project", "View a project and its members", SEE),
        Row("new_project", "Create a project", CHANGE_OWN | {MEMBER: FORBIDDEN}, BOTH),
        Row("rename_project", "Rename a project", OWN, BOTH),
        Row("share_files", "Let viewers of a project read files", OWN, "POST"),
        Row("archive_project", "Archive an empty project", OWN, BOTH),
        Row("unarchive_project", "Unarchive a project", OWN, "POST"),
        Row("accounts:invite", "Invite a user", OWN, BOTH),
        Row("accounts:resend", "Send an invitation again", OWN, "POST", {"invitation_id": "invitation"}),
        Row("accounts:revoke", "Revoke an invitation", OWN, "POST", {"invitation_id": "invitation"}),
        Row("accounts:role", "Change a member's role", OWN, BOTH, OTHERS),
        Row("accounts:remove", "Remove a member from a project", OWN, BOTH, OTHERS),
        Row("accounts:invitation", "Accept an invitation", LINK, BOTH),
    ],
    "Your account": [
        Row("notifications:list", "View notifications", SIGNED_IN),
        Row("snapshots:work", "View work in progress", SIGNED_IN),
        Row("notifications:open", "Open a notification", ONESELF),
        Row("notifications:mark_all_read", "Mark all notifications as read", SIGNED_IN, "POST"),
        Row("notifications:resend", "Send the e-mail of a notification again", ONESELF, "POST"),
        Row("accounts:profile", "Change your profile", SIGNED_IN, BOTH),
        Row("accounts:choose_theme", "Choose a theme", SIGNED_IN, "POST", query="?theme=dark"),
        Row("accounts:stop_impersonating", "Stop impersonating a user", IMPERSONATOR, "POST"),
        Row("accounts:security", "View security settings", SIGNED_IN),
        Row("accounts:sessions", "List your sessions", SIGNED_IN),
        Row("accounts:end_other_sessions", "End your other sessions", SIGNED_IN, "POST"),
        Row("accounts:end_session", "End one of your sessions", ONESELF, "POST", {"session_id": "session"}),
        Row("accounts:sign_ins", "View your sign-in history", SIGNED_IN),
        Row(
            "accounts:approvals",
            "View requests for approval; turn approval by a second owner on or off",
            CHANGE_OWN | {MEMBER: FORBIDDEN},
            BOTH,
            other={"GET": SIGNED_IN},
        ),
        Row("accounts:decide_approval", "Approve or reject a request", BILL, "POST", query="?outcome=reject"),
        Row("api:credentials", "List application credentials, and read how to use the API", SIGNED_IN),
        Row("api:reference", "Read the reference of the portal's own API", SIGNED_IN),
        Row("api:new_credential", "Create an application credential", CHANGE_OWN, BOTH),
        Row("api:revoke", "Revoke an application credential", REVOKE_CREDENTIAL, BOTH, {"credential_id": "credential"}),
        Row("activity:log", "View the activity log", SIGNED_IN),
        Row("activity:csv", "Export the activity log", SIGNED_IN),
        Row("snapshots:limits", "View the account's limits and usage", SIGNED_IN),
    ],
    "Sign-in": [
        Row("account_login", "Sign in", EVERYONE, BOTH),
        Row("account_logout", "Sign out", SIGNED_IN, BOTH, other={"POST": dict.fromkeys(ROLES, SIGN_IN)}),
        Row("account_inactive", "Read that the account is deactivated", EVERYONE),
        Row("account_signup", "Read how to get an account", EVERYONE, BOTH),
        Row("account_reauthenticate", "Re-authenticate", SIGNED_IN, BOTH),
        Row("account_email", "Change your e-mail address", SIGNED_IN, BOTH),
        Row("account_email_verification_sent", "Read that an e-mail was sent", EVERYONE),
        Row("account_confirm_email", "Confirm an e-mail address", EVERYONE, BOTH, other={"POST": NOBODY}),
        Row("account_change_password", "Change your password", SIGNED_IN, BOTH),
        Row("account_set_password", "Set a first password", SIGNED_IN, BOTH),
        Row("account_reset_password", "Request a password link", EVERYONE, BOTH),
        Row("account_reset_password_done", "Read that the link was sent", EVERYONE),
        Row("account_reset_password_from_key", "Set a new password with the link", EVERYONE, BOTH),
        Row("account_reset_password_from_key_done", "Read that the password was changed", EVERYONE),
        Row("account_confirm_login_code", "Sign in with a code (disabled)", SIGNED_IN, BOTH),
    ],
    "API": [
        Row("openstack:identity", "Read the versions of Identity", EVERYONE),
        Row("openstack:identity_slash", "Read the versions of Identity", EVERYONE),
        Row("openstack:identity_v3", "Read the version of Identity", EVERYONE),
        Row("openstack:identity_v3_slash", "Read the version of Identity", EVERYONE),
        Row(
            "openstack:tokens",
            "Sign in with an application credential",
            BY_TOKEN,
            "GET POST",
            other={"POST": dict.fromkeys(ROLES, "400")},
        ),
        Row("openstack:catalog", "List the regions", BY_TOKEN),
        Row("openstack:volume_versions", "Read the versions of Block Storage", EVERYONE),
        Row("openstack:volume_versions_slash", "Read the versions of Block Storage", EVERYONE),
        Row("openstack:volume_v3", "Read the version of Block Storage", EVERYONE),
        Row("openstack:volume_v3_slash", "Read the version of Block Storage", EVERYONE),
        Row("openstack:volumes", "List volumes; create one", BY_TOKEN, "GET POST"),
        Row("openstack:volume_details", "List volumes with details", BY_TOKEN),
        Row("openstack:volume", "View, change or delete a volume", BY_TOKEN, "GET PUT DELETE"),
        Row("openstack:volume_action", "Grow or revert a volume", BY_TOKEN, "POST"),
        Row("openstack:volume_properties", "View or change the properties of a volume", BY_TOKEN, "GET POST PUT"),
        Row("openstack:volume_property", "View, change or remove a property of a volume", BY_TOKEN, "GET PUT DELETE"),
        Row("openstack:snapshots", "List volume snapshots; take one", BY_TOKEN, "GET POST"),
        Row("openstack:snapshot_details", "List volume snapshots with details", BY_TOKEN),
        Row("openstack:snapshot", "View, change or delete a volume snapshot", BY_TOKEN, "GET PUT DELETE"),
        Row(
            "openstack:snapshot_properties",
            "View or change the properties of a snapshot",
            BY_TOKEN,
            "GET POST PUT",
        ),
        Row(
            "openstack:snapshot_property",
            "View, change or remove a property of a snapshot",
            BY_TOKEN,
            "GET PUT DELETE",
        ),
        Row("openstack:limits", "View limits and usage", BY_TOKEN),
        Row("openstack:quotas", "View quotas", BY_TOKEN),
        Row("openstack:zones", "List availability zones", BY_TOKEN),
        Row("openstack:types", "List volume types", BY_TOKEN),
        Row("openstack:volume_type", "View a volume type", BY_TOKEN),
        Row("v1:openapi", "Read the schema of the portal's own API", EVERYONE),
        Row("v1:api-root", "Nothing: the root of the portal's own API", NOBODY, BOTH),
        Row("v1:locations", "List locations with prices", BY_TOKEN),
        Row("v1:quotes", "Ask what a size costs", BY_TOKEN),
        Row("v1:volumes", "List volumes", BY_TOKEN),
        Row("v1:volume", "View a volume", BY_TOKEN),
        Row("v1:snapshots", "List snapshots and backups; take one", BY_TOKEN, "GET POST"),
        Row("v1:snapshot", "View, change or delete a snapshot", BY_TOKEN, "GET PATCH DELETE"),
        Row("v1:recycle_bin", "List the recycle bin", BY_TOKEN),
        Row("v1:put_back", "Put a snapshot back", BY_TOKEN, "POST"),
        Row("v1:restore", "Restore a snapshot", BY_TOKEN, "POST"),
        Row("v1:lock", "Lock a snapshot", BY_TOKEN, "PUT"),
        Row("v1:operations", "List operations", BY_TOKEN),
        Row("v1:operation", "View the progress of an operation", BY_TOKEN),
        Row("v1:usage", "List the project's usage", BY_TOKEN),
        Row("v1:invoices", "List invoices with the project's share", BY_TOKEN),
        Row("v1:activity", "List the project's activity", BY_TOKEN),
    ],
    "Help": [
        Row("help:index", "Read the guide", SIGNED_IN),
        Row("help:guide", "Read a page of the guide", SIGNED_IN),
    ],
    "Second factors": [
        Row("mfa_index", "Redirect to security settings", SIGNED_IN, ANY),
        Row("mfa_list_webauthn", "Redirect to passkeys", SIGNED_IN, ANY),
        Row("mfa_authenticate", "Enter the second factor at sign-in", SIGNED_IN, BOTH),
        Row("mfa_reauthenticate", "Re-authenticate with a code", SIGNED_IN, BOTH),
        Row("mfa_reauthenticate_webauthn", "Re-authenticate with a passkey", SIGNED_IN, BOTH),
        Row(
            "mfa_login_webauthn",
            "Sign in with a passkey",
            EVERYONE,
            BOTH,
            other={"POST": AT_SIGN_IN, "GET": AT_SIGN_IN},
        ),
        Row("mfa_activate_totp", "Set up an authenticator app", SIGNED_IN, BOTH),
        Row("mfa_deactivate_totp", "Remove your authenticator app", MINE_ALONE, BOTH),
        Row("mfa_view_recovery_codes", "View your recovery codes", MINE_ALONE),
        Row("mfa_generate_recovery_codes", "Generate recovery codes", SIGNED_IN, BOTH),
        Row("mfa_download_recovery_codes", "Download your recovery codes", MINE_ALONE, BOTH),
        Row("mfa_add_webauthn", "Add a passkey", SIGNED_IN, BOTH),
        Row("mfa_edit_webauthn", "Rename your passkey", SIGNED_IN, BOTH, {"pk": "passkey"}),
        Row("mfa_remove_webauthn", "Remove your passkey", SIGNED_IN, BOTH, {"pk": "passkey"}),
    ],
    "Django admin": [
        Row("admin:index", "View Django admin", ADMINISTER, BOTH),
        Row("admin:login", "Open Django admin's sign-in", AT_THE_DOOR, BOTH),
        Row("admin:logout", "Sign out of Django admin", SIGNED_IN, BOTH, other={"GET": LEAVING}),
        Row("admin:autocomplete", "Search for users, projects and so on in a form", ADMINISTER, query=OF_MEMBERSHIP),
        Row("components", "View all components in all states", STAFF, BOTH),
        Row("admin:jsi18n", "Load translations of Django admin's scripts", ADMINISTER),
        Row("admin:app_list", "View an app in Django admin", ADMINISTER, BOTH),
        Row("admin:auth_user_password_change", "Set a user's password", ADMINISTER, BOTH),
        Row("admin:password_change", "Change your own password", ADMINISTER, BOTH),
        Row("admin:password_change_done", "Read that your password was changed", ADMINISTER),
        Row("admin:accounts_impersonate", "Impersonate a user", ADMINISTER, BOTH, USER),
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
        Row("admin:snapshots_lift_lock", "Lift the lock of a snapshot", ADMINISTER, BOTH, {"pk": "lock"}),
        Row("admin:billing_account_correct", "Correct a balance", ADMINISTER, BOTH, ACCOUNT),
        Row("admin:billing_price_correct", "Correct a price that has begun", ADMINISTER, BOTH),
        Row("admin:snapshots_operation_overview", "View the operations overview", ADMINISTER),
    ],
}


WRITTEN = Path(__file__).resolve().parent.parent / "docs" / "permissions.md"
SIGNS = {OK: "✓", SIGN_IN: "", FORBIDDEN: "403", MISSING: "404", "401": "token", "400": "✓"}
# Django admin's pages of a model, and the permission that each needs.
MODEL_PAGES = {
    "changelist": "view",
    "change": "view",
    "history": "view",
    "add": "add",
    "delete": "delete",
}

INTRODUCTION = """\
# Permissions

Generated from `tests/permissions.py` by `make permissions`. `tests/test_permissions.py` requests every URL in every role, by
GET, POST and htmx, and fails if a response differs, a URL is missing there, or this page is out of date.

A user has one role in each project: **viewers** read, **members** also take, restore and delete, **owners** also see costs
and manage members. A **stranger** owns a project of another customer and can't tell whether an object exists: both cases are
a 404. An **administrator** is a stranger to projects, too, and works in Django admin.

✓ allowed (for URLs without an object: on the user's own data); empty: redirected to sign-in; 403: the response names the
missing role; 404: the object's existence is hidden; token: the session of a browser gives no access, only a token does, of a
credential that has one role in one project. `tests/snapshots/api/` holds what each credential may do.
"""

FIELDS = """\
## Fields

Whoever may see an object sees all of its fields, and whoever may change it changes the fields of its form only. Beyond that:

| field | visible to | changed by |
|---|---|---|
| wallet, spending, invoices | owners; administrators | administrators, by a transaction with a reason |
| price of an object | whoever sees the object | administrators, from a future time on |
| state, size, checksum, times of a snapshot or backup | whoever sees it | the portal only |
| name of a snapshot, whether a backup is pinned | whoever sees it | members and owners, until it is being deleted |
| tags, note and properties of a volume or snapshot | whoever sees it | members and owners, until it is deleted |
| role of a user | the project's members | the project's owners, who must keep one; administrators |
| e-mail address of a colleague | members of a common project | the user, after re-authentication; administrators |
| name, time zone, theme | name: colleagues; others: the user | the user |
| quotas | the project's members | administrators |
| automatic backups of a machine | whoever sees the machine | administrators |
| password, secrets of factors | nobody | the user; administrators set or remove them, which is notified |
| number and currency of a customer, code of a location, customer of a project | whoever sees it | nobody, after creation |
| administrator rights (`is_staff`, `is_superuser`, groups, permissions) | administrators | superusers |
"""


def as_markdown() -> str:
    lines = [INTRODUCTION]
    for heading, rows in TABLE.items():
        lines += [f"## {heading}", "", *header("action", *ROLES)]
        for row in rows:
            answers = SIGNED_IN if row.audience is ONESELF else row.audience
            lines.append(f"| {row.action} | " + " | ".join(SIGNS[answers[role]] for role in ROLES) + " |")
        lines.append("")
    lines += ["## Django admin", "", *header("model", "view", "add", "change", "delete")]
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
        yield str(model._meta.verbose_name), [may[action] for action in ("view", "add", "change", "delete")]


if __name__ == "__main__":
    import os

    import django

    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "cng_portal.settings")
    django.setup()
    WRITTEN.write_text(as_markdown())
    sys.stdout.write(f"{WRITTEN.relative_to(Path.cwd())} written.\n")
