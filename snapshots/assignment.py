"""Which project a snapshot belongs to, and who can read its data there."""

from collections.abc import Iterable
from dataclasses import dataclass
from uuid import UUID

from django.utils.translation import gettext as _
from django.utils.translation import ngettext

from cng_portal.accounts.models import Membership, Project

# Of a list of names. The others are counted.
NAMES_SHOWN = 5


@dataclass(frozen=True)
class ReaderNotice:
    """For partials/notice.html."""

    text: str
    tone: str


def find_new_readers(project: Project, source_project_ids: Iterable[UUID]) -> list[str]:
    """Return the names of the project's members who have no role in one of the volumes' projects. Two queries."""
    others = set(source_project_ids) - {project.pk}
    members = Membership.objects.filter(user__is_active=True)
    with_role = dict.fromkeys(others, frozenset[UUID]())
    for project_id, user_id in members.filter(project__in=others).values_list("project_id", "user_id"):
        with_role[project_id] |= {user_id}
    readers = members.filter(project=project).select_related("user").order_by("user__name", "user__email")
    return [str(reader.user) for reader in readers if any(reader.user_id not in users for users in with_role.values())]


def explain_new_readers(project: Project, sources: Iterable[Project]) -> ReaderNotice | None:
    """Say who will be able to read data of other projects' volumes in `project`. None if all are of `project`."""
    others = {source.pk: source.name for source in sources if source.pk != project.pk}
    if not others:
        return None
    names = {"project": project.name, "source": ", ".join(sorted(others.values()))}
    readers = find_new_readers(project, others)
    if not readers:
        text = _(
            "Every member of “%(project)s” has a role in “%(source)s” too, so nobody else will be able to read the data."
        )
        return ReaderNotice(text % names, "info")
    shown, more = ", ".join(readers[:NAMES_SHOWN]), len(readers) - NAMES_SHOWN
    if more > 0:
        text = ngettext("%(names)s and %(count)s more", "%(names)s and %(count)s more", more)
        shown = text % {"names": shown, "count": more}
    text = ngettext(
        "This member of “%(project)s” has no role in “%(source)s”, but will be able to read the data: %(readers)s.",
        "These members of “%(project)s” have no role in “%(source)s”, but will be able to read the data: %(readers)s.",
        len(readers),
    )
    return ReaderNotice(text % (names | {"readers": shown}), "warning")
