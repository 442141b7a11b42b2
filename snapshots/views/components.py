"""The page of every component of the portal in every state, for staff who build pages or check a theme."""

from datetime import datetime, timedelta

from django import forms
from django.contrib.messages import constants
from django.contrib.messages.storage.base import Message
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import render
from django.utils import timezone

from cng_portal.accounts.models import Customer, Project
from cng_portal.inventory.models import Location, Volume
from cng_portal.support.models import SupportContact
from snapshots.forms import ConfirmationForm, VolumeFilterForm
from snapshots.models import COUNTED_STATES, Operation, Snapshot, State
from snapshots.storage.contract import GIB

from .rows import Action, OperationRow, SnapshotRow

ACTIONS = [
    Action("rename", "Rename", "#rename", "pencil-square"),
    Action("delete", "Delete", "#delete", "trash", danger=True),
]
PAGE_ACTIONS = [
    Action("new_volume", "New volume", "#overview", "circle-stack"),
    Action("restore", "Restore", "#overview", "arrow-uturn-left"),
    *ACTIONS,
]
LONG_NAME = "a-really-long-name-of-a-snapshot-taken-before-the-update-of-2026"


class SampleForm(forms.Form):
    name = forms.CharField(label="Name", help_text="Up to 120 characters.")
    size_gb = forms.IntegerField(label="Size", required=False)
    location = forms.ChoiceField(label="Location", choices=[("", "1CNG-YGN-AZ01")])
    cycle = forms.ChoiceField(
        label="Billing Cycle", choices=[("hourly", "Hourly"), ("none", "None")], widget=forms.RadioSelect
    )
    notes = forms.CharField(label="Notes", widget=forms.Textarea(attrs={"rows": 2}), required=False)
    agreed = forms.BooleanField(label="Take one immediately")


def components(request: HttpRequest) -> HttpResponse:
    """It uses nothing from the database, and its forms change nothing. The samples are not translated."""
    if not request.user.is_staff:
        raise Http404
    now = timezone.now()
    wrong = SampleForm({"size_gb": "many"})
    wrong.add_error(None, "Something is wrong that no single field is to blame for.")
    context = {
        "tones": ["info", "success", "warning", "danger"],
        "colours": ["success", "info", "warning", "danger", "neutral"],
        "illustrations": ["snapshot", "volume", "search", "done", "locked", "lost", "broken"],
        "location": Location(code="1CNG-YGN-AZ01", city="Yangon", country="MM"),
        "elsewhere": Location(code="1CNG-TYO-AZ01", city="Tokyo", country="JP"),
        "instants": [now, now - timedelta(minutes=3), now - timedelta(days=40), now + timedelta(hours=2), None],
        "gib": GIB,
        "quarter": GIB * 25 // 2,
        "whole": GIB * 50,
        "form": SampleForm(prefix="empty"),
        "wrong": wrong,
        "page_form": SampleForm(prefix="page"),
        "filter_form": SampleForm(prefix="filter"),
        "list_form": VolumeFilterForm({}, user=request.user),
        "contact": SupportContact(email="support@example.com", phone="+95 1 234 567"),
        "confirmation": ConfirmationForm(label="Type the name to confirm", required="Type the name."),
        "messages": [
            Message(level, text)
            for level, text in [
                (constants.SUCCESS, "The snapshot is called “before the update” now."),
                (constants.INFO, "It is being tried again."),
                (constants.WARNING, "Your credits last for less than a day."),
                (constants.ERROR, "There is no room for it. Ask your provider."),
            ]
        ],
        "facts": [
            {"label": "Project", "value": "Default", "change_url": "#facts"},
            {"label": "Volume", "value": LONG_NAME, "url": "#facts"},
            {"label": "ID", "value": "0b7c6f52-6f0a-4c0b-9d0a-4f6c1f1f2a11", "copy_text": "0b7c6f52"},
        ],
        "steps": [
            {"label": "Location", "state": "done", "url": "#step_list", "answer": "1CNG-YGN-AZ01"},
            {"label": "Project", "state": "done", "answer": "Default"},
            {"label": "Volume", "state": "current"},
            {"label": "Name", "state": "upcoming"},
        ],
        "tabs": [
            {"label": "VM Snapshot", "url": "#tabs", "icon": "server"},
            {"label": "Volume Snapshot", "url": "#tabs", "icon": "circle-stack", "active": True, "count": 12},
        ],
        "actions": ACTIONS,
        "page_actions": PAGE_ACTIONS,
        "bars": [{"x": 10 * n, "y": 40 - 3 * n, "height": 3 * n + 1} for n in range(12)],
        "choice_facts": [{"label": "Attached to", "value": "db-01"}, {"label": "Created", "value": "22 Nov 2026"}],
        "consequences": ["Its data is erased. This can't be undone.", "You stop paying K 20 an hour."],
        "rows": sample_rows(),
        "cards": sample_rows(),
        "views": [{"name": name, "url": "#list_toolbar"} for name in ("table", "cards")],
        "teams": [
            [("Aung Zaw Htet", "Owner"), ("Thiri Win", "Viewer")],
            [("somebody-with-a-really-long-address@mail.example.com", "Member")],
        ],
        "operations": sample_operations(now),
    }
    return render(request, "components.html", context)


def sample_operations(now: datetime) -> list[OperationRow]:
    """One in progress, one that can be retried, and a restore that can be undone."""
    volume = Volume(name="db-01-data", size_gb=50)
    taken, safety = Snapshot(name="before the update"), Snapshot(name="before-restore-of-db-01-data")
    kinds, states, minute = Operation.Kind, Operation.State, timedelta(minutes=1)
    operations = [
        Operation(kind=kinds.CAPTURE, state=states.RUNNING, attempt=1, bytes_done=GIB * 12, bytes_total=GIB * 50),
        Operation(kind=kinds.CAPTURE, state=states.FAILED, error="The storage ran out of room.", finished_at=now),
        Operation(kind=kinds.RESTORE, state=states.SUCCEEDED, volume=volume, safety_snapshot=safety, finished_at=now),
        Operation(kind=kinds.VERIFY, state=states.PENDING),
    ]
    for number, operation in enumerate(operations):
        operation.snapshot, operation.created_at = taken, now - number * 20 * minute
        operation.started_at = now - minute
    return [
        OperationRow(operation, can_retry=number == 1, can_undo=number == 2)
        for number, operation in enumerate(operations)
    ]


def sample_rows() -> list[SnapshotRow]:
    """A snapshot in each state that a list shows, and one with everything too long and gone."""
    project = Project(name="Default", customer=Customer(number=1039, name="A.Z.H Trading"))
    location = Location(code="1CNG-YGN-AZ01", city="Yangon", country="MM")
    rows = []
    for state in State:
        if state == State.DELETED:
            continue
        volume = Volume(name="db-01-data", size_gb=50, project=project, location=location)
        rows.append(sample_row(volume, f"before the update, {state.label.lower()}", state))
    gone = Volume(name=LONG_NAME, size_gb=16_384, project=project, location=location, deleted_at=timezone.now())
    return [*rows, sample_row(gone, LONG_NAME, State.READY)]


def sample_row(volume: Volume, name: str, state: State) -> SnapshotRow:
    snapshot = Snapshot(
        name=name,
        state=state,
        volume=volume,
        project=volume.project,
        location=volume.location,
        size_gb=volume.size_gb,
        error="The storage ran out of room. Ask your provider, then try again." if state == State.FAILED else "",
    )
    operation = Operation(
        state=Operation.State.RUNNING,
        attempt=1,
        started_at=timezone.now() - timedelta(minutes=1),
        bytes_done=GIB * 12,
        bytes_total=GIB * volume.size_gb,
    )
    return SnapshotRow(
        snapshot,
        hourly="K 20" if state in COUNTED_STATES else "",
        operation=operation if state == State.CREATING else None,
        has_menu=state in (State.READY, State.FAILED),
        can_see_source=True,
    )
