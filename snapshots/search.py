"""The global search of everything a user can reach: resources, projects, invoices, pages and actions, by name or ID."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from django.db.models import Case, Exists, OuterRef, Q, QuerySet, Value, When
from django.db.models.functions import Coalesce
from django.urls import reverse
from django.utils.functional import Promise
from django.utils.http import urlencode
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from billing.access import billed_customer
from billing.models import Invoice
from cng_portal.accounts.models import Project, Role, User
from cng_portal.common.ids import parse_uuid
from cng_portal.common.names import fold_name, name_contains
from cng_portal.common.templatetags.portal import month
from cng_portal.inventory.models import VirtualMachine, Volume

from .labels import visible_tags
from .lists import LISTS
from .models import BackupSchedule, Kind, Snapshot

SHOWN = 5
EXACT, PREFIX, CONTAINS = range(3)
# One invoice a month: twenty years.
INVOICES_SEARCHED = 240


@dataclass(frozen=True)
class Hit:
    name: str
    url: str
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Group:
    """The hits of one kind, best first. `more_url` is the list of all, empty unless there are more."""

    label: str | Promise
    icon: str
    hits: list[Hit] = field(default_factory=list)
    rank: int = CONTAINS
    has_more: bool = False
    more_url: str = ""


@dataclass(frozen=True)
class Page:
    """A page or action that everybody finds, or only those who see bills, change a project or own the customer."""

    label: str | Promise
    url_name: str
    args: tuple[str, ...] = ()
    audience: str = ""


BILLED, CHANGING, OWNING = "billed", "changing", "owning"
ACTIONS = [
    Page(gettext_lazy("Take Snapshot"), "snapshots:new", audience=CHANGING),
    Page(gettext_lazy("Take VM Snapshot"), "snapshots:new_vm", audience=CHANGING),
    Page(gettext_lazy("Create Volume"), "snapshots:create_volume", audience=CHANGING),
    Page(gettext_lazy("Create Backup"), "snapshots:new_backup", audience=CHANGING),
    Page(gettext_lazy("Schedule snapshots"), "snapshots:new_schedule", audience=CHANGING),
    Page(gettext_lazy("New project"), "new_project", audience=OWNING),
]
PAGES = [
    Page(gettext_lazy("Dashboard"), "dashboard"),
    Page(gettext_lazy("Projects"), "projects"),
    Page(gettext_lazy("Instances"), "snapshots:machines"),
    Page(gettext_lazy("Volume snapshots"), "snapshots:volume_snapshots"),
    Page(gettext_lazy("VM snapshots"), "snapshots:vm_snapshots"),
    Page(gettext_lazy("Backups"), "snapshots:backups"),
    Page(gettext_lazy("Schedules"), "snapshots:schedules"),
    Page(gettext_lazy("Volumes"), "snapshots:volumes"),
    Page(gettext_lazy("Recycle bin"), "snapshots:recycle_bin"),
    Page(gettext_lazy("Restore drills"), "snapshots:drills"),
    Page(gettext_lazy("Billing summary"), "billing:summary", audience=BILLED),
    Page(gettext_lazy("Subscriptions"), "billing:subscriptions", audience=BILLED),
    Page(gettext_lazy("Infra Credits"), "billing:credits", audience=BILLED),
    Page(gettext_lazy("Transactions"), "billing:transactions", audience=BILLED),
    Page(gettext_lazy("Account Statement and invoices"), "billing:statement", audience=BILLED),
    Page(gettext_lazy("Prices"), "billing:prices"),
    Page(gettext_lazy("Notifications"), "notifications:list"),
    Page(gettext_lazy("Your profile"), "accounts:profile"),
    Page(gettext_lazy("Password, passkeys and security"), "accounts:security"),
    Page(gettext_lazy("Sessions"), "accounts:sessions"),
    Page(gettext_lazy("Sign-in history"), "accounts:sign_ins"),
    Page(gettext_lazy("API and application credentials"), "api:credentials"),
    Page(gettext_lazy("API reference"), "api:reference"),
    Page(gettext_lazy("Activity log"), "activity:log"),
    Page(gettext_lazy("Approvals by a second owner"), "accounts:approvals"),
    Page(gettext_lazy("Limits"), "snapshots:limits"),
    Page(gettext_lazy("Help"), "help:index"),
    Page(gettext_lazy("Billing"), "help:guide", ("billing",)),
    Page(gettext_lazy("Keyboard shortcuts"), "help:guide", ("keyboard",)),
]


def search(user: User, text: str) -> list[Group]:
    """Search by name or ID: exact names first, then prefixes. At most ten queries."""
    key = fold_name(text)
    if not key:
        return []
    pk = parse_uuid(text)
    projects = list(Project.objects.visible_to(user).order_by("name", "pk").values_list("pk", "name"))
    groups = [
        find_volumes(user, text, pk),
        find_snapshots(user, text, pk),
        find_machines(user, text, pk),
        find_binned(user, text, pk),
        find_schedules(user, text, pk),
        find_projects(key, pk, projects),
        find_invoices(user, key),
        find_tags(user, text, pk),
        find_actions(user, key, projects),
        find_pages(user, key),
    ]
    return sorted((group for group in groups if group.hits), key=lambda group: group.rank)


def rank_of(name: str, key: str) -> int:
    """Return EXACT, PREFIX or CONTAINS."""
    folded = fold_name(name)
    return EXACT if folded == key else PREFIX if folded.startswith(key) else CONTAINS


def build_group(rows: Iterable[tuple[str, Hit]], key: str, **fields: Any) -> Group:
    """Build a group of (name, hit) that match, ordered and cut; those of equal rank stay in their order."""
    ranked = sorted(((rank_of(name, key), hit) for name, hit in rows), key=lambda row: row[0])
    has_more = len(ranked) > SHOWN
    return Group(
        hits=[hit for _rank, hit in ranked[:SHOWN]],
        rank=ranked[0][0] if ranked else CONTAINS,
        has_more=has_more,
        **{**fields, "more_url": fields.get("more_url", "") if has_more else ""},
    )


def best_first(rows: QuerySet[Any], text: str, pk: UUID | None, path: str = "") -> list[Any]:
    """Return the best SHOWN + 1 matches. Sorts all of them, so only for tables with thousands of rows a customer."""
    if pk:
        return list(rows.filter(pk=pk))
    column, key = f"{path}name_key", fold_name(text)
    rank = Case(
        When(**{column: key}, then=Value(EXACT)),
        When(**{f"{column}__startswith": key}, then=Value(PREFIX)),
        default=Value(CONTAINS),
    )
    return list(rows.filter(name_contains(text, path)).order_by(rank, column, "pk")[: SHOWN + 1])


def list_url(name: str, text: str) -> str:
    return f"{reverse(name)}?{urlencode({'q': text})}"


def group_of(objects: Iterable[Any], text: str, view: str, note: Callable[[Any], str], **fields: Any) -> Group:
    """Build the group of these objects, each with a link to its page. `fields` are those of Group."""
    hits = [(item.name, Hit(item.name, reverse(view, args=[item.pk]), note(item))) for item in objects]
    return build_group(hits, fold_name(text), **fields)


def find_volumes(user: User, text: str, pk: UUID | None) -> Group:
    visible = (
        Volume.objects.visible_to(user).select_related("project").only("name", "size_gb", "bin_until", "project__name")
    )
    return group_of(
        best_first(visible if pk else visible.present(), text, pk),
        text,
        "snapshots:volume",
        lambda volume: mark_binned(
            volume, _("%(size)s GB · %(project)s") % {"size": volume.size_gb, "project": volume.project.name}
        ),
        label=_("Volumes"),
        icon="circle-stack",
        more_url=list_url("snapshots:volumes", text),
    )


def find_snapshots(user: User, text: str, pk: UUID | None) -> Group:
    """Stop at the first that match, in the order of the index of names: a customer may have a hundred thousand."""
    visible = (
        Snapshot.objects.visible_to(user).select_related("project").only("name", "kind", "bin_until", "project__name")
    )
    if pk:
        snapshots = list(visible.filter(pk=pk))
    else:
        named = visible.filter(deleted_at=None).order_by("name_key")
        starting = Q(name_key__startswith=fold_name(text))
        snapshots = list(named.filter(starting)[: SHOWN + 1])
        if len(snapshots) <= SHOWN:
            snapshots += named.filter(~starting, name_contains(text))[: SHOWN + 1 - len(snapshots)]
    return group_of(
        snapshots,
        text,
        "snapshots:snapshot",
        lambda snapshot: mark_binned(snapshot, f"{snapshot.get_kind_display()} · {snapshot.project.name}"),
        label=_("Snapshots and backups"),
        icon="camera",
    )


def mark_binned(item: Volume | Snapshot, note: str) -> str:
    return f"{note} · {_('In the recycle bin')}" if item.is_in_bin else note


def find_binned(user: User, text: str, pk: UUID | None) -> Group:
    """Find volumes and snapshots in the recycle bin by name. Their own groups find them by ID."""
    hits = (
        []
        if pk
        else [
            (binned.name, Hit(binned.name, reverse(view, args=[binned.pk]), f"{label(binned)} · {binned.project.name}"))
            for rows, view, label in (
                (Volume.objects, "snapshots:volume", lambda _volume: _("Volume")),
                (Snapshot.objects, "snapshots:snapshot", Snapshot.get_kind_display),
            )
            for binned in best_first(rows.visible_to(user).in_bin().select_related("project"), text, None)
        ]
    )
    more_url = list_url("snapshots:recycle_bin", text)
    return build_group(hits, fold_name(text), label=_("In the recycle bin"), icon="trash", more_url=more_url)


def find_machines(user: User, text: str, pk: UUID | None) -> Group:
    visible = VirtualMachine.objects.visible_to(user).select_related("project").only("name", "project__name")
    return group_of(
        best_first(visible if pk else visible.present(), text, pk),
        text,
        "snapshots:machine",
        lambda vm: vm.project.name,
        label=_("Instances"),
        icon="server",
        more_url=list_url("snapshots:machines", text),
    )


def find_schedules(user: User, text: str, pk: UUID | None) -> Group:
    """Schedules have no names: find them by their machine's or volume's."""
    visible = BackupSchedule.objects.visible_to(user).select_related("vm", "volume")
    annotated = visible.annotate(source_name_key=Coalesce("vm__name_key", "volume__name_key"))
    schedules = best_first(annotated if pk else annotated.present(), text, pk, "source_")
    hits = [
        (
            schedule.source.name,
            Hit(schedule.source.name, reverse("snapshots:schedule", args=[schedule.pk]), schedule.when),
        )
        for schedule in schedules
    ]
    return build_group(
        hits,
        fold_name(text),
        label=_("Schedules"),
        icon="calendar-days",
        more_url=list_url("snapshots:schedules", text),
    )


def find_projects(key: str, pk: UUID | None, projects: list[tuple[UUID, str]]) -> Group:
    hits = [
        (name, Hit(name, reverse("project", args=[project_id])))
        for project_id, name in projects
        if (project_id == pk if pk else key in fold_name(name))
    ]
    return build_group(hits, key, label=_("Projects"), icon="folder", more_url=reverse("projects"))


def find_invoices(user: User, key: str) -> Group:
    """Newest first. Runs no query for users who can't see the bills."""
    invoices = Invoice.objects.visible_to(user)[:INVOICES_SEARCHED] if billed_customer(user) else []
    hits = [
        (invoice.number, Hit(invoice.number, reverse("billing:invoice", args=[invoice.pk]), month(invoice.month)))
        for invoice in invoices
        if key in fold_name(invoice.number)
    ]
    return build_group(hits, key, label=_("Invoices"), icon="banknotes", more_url=reverse("billing:statement"))


def find_tags(user: User, text: str, pk: UUID | None) -> Group:
    """Link to the lists filtered by the tag. Tags aren't found by ID."""
    by_list = {
        "volumes": (_("Volumes with this tag"), Volume.objects.visible_to(user).present()),
        **{
            LISTS[kind]: (label, Snapshot.objects.visible_to(user).filter(deleted_at=None, kind=kind))
            for kind, label in (
                (Kind.VOLUME, _("Volume snapshots with this tag")),
                (Kind.VM, _("VM snapshots with this tag")),
                (Kind.BACKUP, _("Backups with this tag")),
            )
        },
    }
    used = {f"in_{name}": Exists(rows.filter(tags=OuterRef("pk"))) for name, (_label, rows) in by_list.items()}
    tags = [] if pk else best_first(visible_tags(user).annotate(**used), text, None)
    hits = [
        (tag.name, Hit(tag.name, f"{reverse(f'snapshots:{name}')}?{urlencode({'tag': tag.pk})}", label))
        for tag in tags
        for name, (label, _rows) in by_list.items()
        if getattr(tag, f"in_{name}")
    ]
    return build_group(hits, fold_name(text), label=_("Tags"), icon="tag")


def find_actions(user: User, key: str, projects: list[tuple[UUID, str]]) -> Group:
    owned = {project.id for project in user.project_roles if project.role == Role.OWNER and not project.archived_at}
    hits = [
        *named_pages(user, key, ACTIONS),
        *(
            (label, Hit(label, reverse("accounts:invite", args=[project_id])))
            for project_id, name in projects
            if project_id in owned
            and key in fold_name(label := _("Invite a member to %(project)s") % {"project": name})
        ),
    ]
    return build_group(hits, key, label=_("Actions"), icon="bolt")


def find_pages(user: User, key: str) -> Group:
    return build_group(named_pages(user, key, PAGES), key, label=_("Pages"), icon="list-bullet")


def named_pages(user: User, key: str, pages: Iterable[Page]) -> list[tuple[str, Hit]]:
    audiences = {
        "": True,
        BILLED: billed_customer(user) is not None,
        CHANGING: bool(user.changeable_project_ids),
        OWNING: user.owns_customer,
    }
    return [
        (str(page.label), Hit(str(page.label), reverse(page.url_name, args=page.args)))
        for page in pages
        if audiences[page.audience] and key in fold_name(str(page.label))
    ]
