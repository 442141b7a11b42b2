"""Tags and notes of volumes and snapshots: a tag is a short name of the customer's own, a note is text."""

import unicodedata
from collections import defaultdict
from collections.abc import Collection, Iterable
from typing import Any
from uuid import UUID

from django.core.exceptions import ValidationError
from django.db import transaction
from django.db.models import Exists, OuterRef, QuerySet
from django.utils.translation import gettext as _

from cng_portal.accounts.models import User
from cng_portal.accounts.services import lock_customer
from cng_portal.activity import services as activity
from cng_portal.common.loops import for_each
from cng_portal.common.names import JOINERS, clean_name, fold_name, require_visible
from cng_portal.inventory.models import MAX_NOTE_LENGTH, MAX_TAG_LENGTH, Tag, Volume

from . import checks
from .models import Snapshot, in_storage

MAX_TAGS = 20
MAX_LABELLED = 50  # at once
Labelled = type[Volume] | type[Snapshot]


def visible_tags(user: User) -> QuerySet[Tag]:
    """Return the tags of volumes and snapshots that the user sees and that still exist, by name."""
    volumes = Volume.objects.visible_to(user).present().filter(tags=OuterRef("pk"))
    snapshots = Snapshot.objects.visible_to(user).filter(deleted_at=None, tags=OuterRef("pk"))
    used = Tag.objects.filter(Exists(volumes) | Exists(snapshots), customer_id__in=user.customer_ids)
    return used.order_by("name_key", "pk")


def delete_unused_tags() -> None:
    """Delete the tags that no volume or snapshot has. A customer's failure doesn't stop the others."""
    customers = unused_tags().order_by().values_list("customer_id", flat=True).distinct()
    for_each(list(customers), _delete_unused_of)


def _delete_unused_of(customer_id: UUID) -> None:
    with transaction.atomic():
        lock_customer(customer_id)  # Nobody gives one of them to a snapshot meanwhile.
        unused_tags().filter(customer=customer_id).delete()


def unused_tags() -> QuerySet[Tag]:
    """Return the tags of no volume and no snapshot. A deleted volume counts, because it still has a page."""
    volumes = Volume.objects.filter(tags=OuterRef("pk"))
    snapshots = Snapshot.objects.filter(in_storage(), tags=OuterRef("pk"))
    return Tag.objects.filter(~Exists(volumes), ~Exists(snapshots))


def tags_of(model: Labelled, ids: Collection[UUID]) -> dict[UUID, list[Tag]]:
    """Return {ID: tags by name}, without those that have none. One query."""
    tags: dict[UUID, list[Tag]] = defaultdict(list)
    if not ids:
        return tags
    name = model._meta.model_name
    uses: Any = model.tags.through.objects.filter(**{f"{name}__in": ids}).select_related("tag")
    for use in uses.order_by("tag__name_key"):
        tags[getattr(use, f"{name}_id")].append(use.tag)
    return tags


def parse_tags(text: str) -> list[str]:
    """Return the names between the commas, cleaned, each once. Raises ValidationError."""
    names = [clean_name(part, max_length=MAX_TAG_LENGTH) for part in text.split(",") if part.strip()]
    return list({fold_name(name): name for name in reversed(names)}.values())[::-1]


def clean_note(text: str) -> str:
    """Return the note as it is stored: NFC, with plain line breaks. Raises ValidationError."""
    note = "\n".join(unicodedata.normalize("NFC", text).replace("\t", " ").splitlines()).strip()
    if len(note) > MAX_NOTE_LENGTH:
        raise ValidationError(
            _("The note has %(length)s characters; the limit is %(limit)s. Shorten it.")
            % {"length": len(note), "limit": MAX_NOTE_LENGTH}
        )
    return require_visible(note, allowed=JOINERS + "\n")


def change_labels(
    *,
    model: Labelled,
    ids: Iterable[UUID],
    user: User,
    add: Iterable[str] = (),
    remove: Iterable[str] = (),
    note: str | None = None,
) -> dict[UUID, str]:
    """Add and remove tags by name and set the note unless it is None. Returns {ID: why it wasn't changed, or ""}.

    What a colleague added meanwhile stays. Raises PermissionDenied, ValidationError.
    """
    added = {fold_name(name): name for name in map(lambda name: clean_name(name, max_length=MAX_TAG_LENGTH), add)}
    removed = {fold_name(name) for name in remove} - added.keys()
    customers = defaultdict(list)
    for pk, customer_id in model.objects.filter(pk__in=list(ids)).values_list("pk", "project__customer"):
        customers[customer_id].append(pk)
    results: dict[UUID, str] = {}
    with transaction.atomic():
        for customer_id in sorted(customers):
            lock_customer(customer_id)
        for customer_id, own in customers.items():
            results |= _change_of_customer(model, customer_id, own, user, added, removed, note)
    return results


def _change_of_customer(
    model: Labelled,
    customer_id: UUID,
    ids: list[UUID],
    user: User,
    added: dict[str, str],
    removed: set[str],
    note: str | None,
) -> dict[UUID, str]:
    user = User.objects.get(pk=user.pk)
    name, through = str(model._meta.model_name), model.tags.through
    current = tags_of(model, ids)
    existing = {tag.name_key: tag for tag in Tag.objects.filter(customer=customer_id, name_key__in=list(added))}
    results: dict[UUID, str] = {}
    uses: list[Any] = []
    for target in model.objects.filter(pk__in=ids).select_related("project").order_by("pk"):
        checks.require_change(user, target.project_id)
        before = {tag.name_key: tag for tag in current.get(target.pk, [])}
        after = {key: tag.name for key, tag in before.items() if key not in removed}
        after |= {key: label for key, label in added.items() if key not in after}
        results[target.pk] = ""
        if target.deleted_at:
            results[target.pk] = _("“%(name)s” is deleted.") % {"name": target.name}
        elif len(after) > MAX_TAGS and len(after) > len(before):
            results[target.pk] = _("“%(name)s” would have %(count)s tags; the limit is %(limit)s.") % {
                "name": target.name,
                "count": len(after),
                "limit": MAX_TAGS,
            }
        if results[target.pk]:
            continue
        for key in after.keys() - before.keys():
            if key not in existing:
                existing[key] = Tag.objects.create(customer_id=customer_id, name=added[key])
            uses.append(through(**{f"{name}_id": target.pk}, tag=existing[key]))
        gone = [tag.pk for key, tag in before.items() if key not in after]
        if gone:
            through.objects.filter(**{name: target.pk}, tag__in=gone).delete()
        _record(target, user, [tag.name for tag in before.values()], [*after.values()], note)
    through.objects.bulk_create(uses)
    return results


def _record(target: Any, user: User, before: list[str], after: list[str], note: str | None) -> None:
    old: dict[str, Any] = {}
    new: dict[str, Any] = {}
    if sorted(before) != sorted(after):
        old["tags"], new["tags"] = before, sorted(after, key=fold_name)
    if note is not None and note != (target.note or ""):
        old["note"], new["note"] = target.note or "", note
        target.note = note
        target.save(update_fields=["note"])
    if new:
        activity.record(action="labels.change", actor=user, target=target, before=old, after=new)
