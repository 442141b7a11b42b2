"""The pages on which tags and notes are set: of one volume or snapshot, and of several selected in a list."""

from typing import Any
from uuid import UUID

from django.contrib import messages
from django.core.exceptions import ValidationError
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.utils.translation import gettext as _
from django.utils.translation import ngettext
from django.views.decorators.http import require_http_methods

from cng_portal.common.ids import parse_uuid
from cng_portal.common.names import fold_name
from cng_portal.inventory.models import Volume
from snapshots import checks
from snapshots.label_forms import LabelsForm, TagManyForm
from snapshots.labels import MAX_LABELLED, Labelled, change_labels, tags_of, visible_tags
from snapshots.models import Snapshot

from .bulk import list_of
from .common import get_changeable, submit

SUGGESTED = 100


@require_http_methods(["GET", "POST"])
def snapshot_labels(request: HttpRequest, snapshot_id: UUID) -> HttpResponse:
    return edit_labels(request, get_changeable(request, snapshot_id), "snapshots:snapshot")


@require_http_methods(["GET", "POST"])
def volume_labels(request: HttpRequest, volume_id: UUID) -> HttpResponse:
    visible = Volume.objects.visible_to(request.user).present().select_related("project")
    volume = get_object_or_404(visible, pk=volume_id)
    checks.require_change(request.user, volume.project_id)
    return edit_labels(request, volume, "snapshots:volume")


def edit_labels(request: HttpRequest, target: Any, page: str) -> HttpResponse:
    model = type(target)
    tags = tags_of(model, [target.pk]).get(target.pk, [])
    form = LabelsForm(request.POST or None, tags=tags, note=target.note or "")

    def save() -> bool:
        changes = {"add": form.cleaned_data["add"], "remove": form.removed, "note": form.changed_note}
        [refusal] = change_labels(model=model, ids=[target.pk], user=request.user, **changes).values()
        if refusal:
            raise ValidationError(refusal)
        return True

    if submit(request, form, save, field="add"):
        messages.success(request, _("Tags and note are saved."))
        if form.gone:
            text = ngettext(
                "Someone else has removed the tag %(names)s meanwhile. To have it back, add it again.",
                "Someone else has removed these tags meanwhile: %(names)s. To have them back, add them again.",
                len(form.gone),
            )
            messages.info(request, text % {"names": ", ".join(f"“{name}”" for name in form.gone)})
        return redirect(page, target.pk)
    context = {"target": target, "form": form, "page": page, "suggestions": visible_tags(request.user)[:SUGGESTED]}
    return render(request, "snapshots/labels/edit.html", context)


@require_http_methods(["GET", "POST"])
def tag_snapshots(request: HttpRequest) -> HttpResponse:
    return tag_many(request, Snapshot)


@require_http_methods(["GET", "POST"])
def tag_volumes(request: HttpRequest) -> HttpResponse:
    return tag_many(request, Volume)


def tag_many(request: HttpRequest, model: Labelled) -> HttpResponse:
    """Tag those of `?id=…&id=…`. 404 if one is invisible to the user, 403 if one is read-only."""
    user = request.user
    selected = list(dict.fromkeys((request.POST if request.method == "POST" else request.GET).getlist("id")))
    back = "snapshots:volumes" if model is Volume else list_of(request.GET.get("kind"))
    if not selected or len(selected) > MAX_LABELLED:
        messages.warning(
            request,
            _("Nothing was tagged. Select at least one and at most %(most)s first.") % {"most": MAX_LABELLED},
        )
        return redirect(back)
    ids = [key for text in selected if (key := parse_uuid(text))]
    visible = model.objects.visible_to(user).filter(pk__in=ids, deleted_at=None).select_related("project")
    targets: list[Any] = list(visible.order_by("name", "pk"))
    if len(targets) != len(selected):
        raise Http404
    for project_id in {target.project_id for target in targets}:
        checks.require_change(user, project_id)
    back = list_of(targets[0].kind) if model is Snapshot else back
    present = {tag.name_key: tag.name for tags in tags_of(model, ids).values() for tag in tags}
    names = sorted(present.values(), key=fold_name)
    form = TagManyForm(request.POST or None, names=names)

    def save() -> dict[UUID, str]:
        changes = {"add": form.cleaned_data["add"], "remove": form.cleaned_data.get("remove", [])}
        return change_labels(model=model, ids=ids, user=user, **changes)

    if results := submit(request, form, save, field="add"):
        refusals = [reason for reason in results.values() if reason]
        done = len(results) - len(refusals)
        if done:
            text = ngettext("The tags of %(count)s are saved.", "The tags of %(count)s are saved.", done)
            messages.success(request, text % {"count": done})
        for reason in refusals:
            messages.warning(request, reason)
        return redirect(back)
    context = {"targets": targets, "form": form, "back": back, "suggestions": visible_tags(user)[:SUGGESTED]}
    return render(request, "snapshots/labels/many.html", context)
