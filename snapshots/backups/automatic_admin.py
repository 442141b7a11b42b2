"""The switch of automatic backups in Django admin: on machines, and the default schedule on locations.

Machines and locations are registered by the inventory app, which knows nothing of backups. Here they are registered again.
"""

from collections import defaultdict
from datetime import datetime
from typing import Any
from uuid import UUID

from django.contrib import admin, messages
from django.contrib.admin.helpers import ACTION_CHECKBOX_NAME
from django.core.exceptions import PermissionDenied
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse, HttpResponseNotAllowed, HttpResponseRedirect
from django.shortcuts import get_object_or_404, render
from django.urls import path, reverse
from django.utils import timezone
from django.utils.html import format_html
from django.utils.http import url_has_allowed_host_and_scheme, urlencode
from django.utils.safestring import SafeString
from django.utils.translation import gettext, ngettext
from django.utils.translation import gettext_lazy as _

from billing import rating
from billing.pricing.prices import Quote
from billing.usage import rename_resource
from cng_portal.common import money
from cng_portal.common.admin import ReadOnly
from cng_portal.inventory.admin import LocationAdmin, LocationForm, VirtualMachineAdmin, format_instant
from cng_portal.inventory.models import AutomaticBackupSwitch, Location, VirtualMachine

from ..errors import ActionRefused, NotSold
from .automatic import (
    NOTICE,
    automatic_backup_quote,
    automatic_backups,
    automatic_hourly_prices,
    change_default_schedule,
    change_machine_price,
    default_schedule_fields,
    delete_automatic_backups,
    switch_automatic_backups,
)
from .ending import end_schedules_of
from .schedules import SCHEDULE_FIELDS, InvalidSchedule, clean_schedule_fields


class SwitchInline(ReadOnly, admin.TabularInline):
    model = AutomaticBackupSwitch
    fields = ["switched_at", "on", "starts_at", "switched_by"]
    readonly_fields = fields
    extra = 0
    verbose_name_plural = _("history of the automatic backups switch")

    def get_queryset(self, request: HttpRequest) -> Any:
        return super().get_queryset(request).select_related("switched_by", "vm")


class AutomaticBackupsFilter(admin.SimpleListFilter):
    title = _("automatic backups")
    parameter_name = "automatic"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, Any]]:
        return [("on", _("On")), ("off", _("Off"))]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        if self.value() not in ("on", "off"):
            return queryset
        return queryset.filter(automatic_backups_since__isnull=self.value() == "off")


class MachineAdmin(VirtualMachineAdmin):
    """A machine, with the switch of its automatic backups: as a column, as an action for many, and on its page."""

    # Next to the name, so that the switch is visible however wide the other columns are.
    list_display = ["name", "automatic_backups", *VirtualMachineAdmin.list_display[1:]]
    list_filter = [AutomaticBackupsFilter, *VirtualMachineAdmin.list_filter]
    inlines = [*VirtualMachineAdmin.inlines, SwitchInline]
    actions = ["switch_many_on", "switch_many_off"]
    change_form_template = "snapshots/admin/machine.html"

    def get_readonly_fields(self, request: HttpRequest, obj: VirtualMachine | None = None) -> list[str]:
        fields = super().get_readonly_fields(request, obj)
        return [*fields, "automatic_backups_here"] if obj else fields

    def get_changelist_instance(self, request: HttpRequest) -> Any:
        """Add the price and the switch to each row, with one more query."""
        changelist = super().get_changelist_instance(request)
        rows = list(changelist.result_list)
        prices = automatic_hourly_prices(rows, at=timezone.now())
        for vm in rows:
            vm.automatic_hourly_micro = prices[vm.pk]
            vm.switch_button = self.has_change_permission(request) and switch_button(vm, back=request.get_full_path())
        changelist.result_list = rows
        return changelist

    @admin.display(description=_("automatic backups"), ordering="automatic_backups_since")
    def automatic_backups(self, vm: Any) -> SafeString:
        return format_html(
            "{} {} <small>{}</small>",
            state_label(vm.automatic_backups_since),
            vm.switch_button or "",
            price_label(vm, vm.automatic_hourly_micro),
        )

    @admin.display(description=_("automatic backups"))
    def automatic_backups_here(self, vm: VirtualMachine) -> SafeString:
        """On the machine's page: whether they are on, their price, and the switch."""
        since = vm.automatic_backups_since
        lines = [gettext("Off.")]
        if since:
            sentence = gettext("On from %(time)s.") if since > timezone.now() else gettext("On since %(time)s.")
            lines = [sentence % {"time": format_instant(since)}]
        remaining = 0 if since else automatic_backups(vm).count()
        try:
            quote = automatic_backup_quote(vm=vm)
        except NotSold as refusal:
            lines.append(str(refusal))
        else:
            lines += [cost_sentence(quote), default_sentence(vm.location)]
        button = switch_button(vm, form="automatic-backups")
        if remaining:
            text = ngettext("Delete the remaining backup…", "Delete the %(count)s remaining backups…", remaining)
            url = reverse("admin:snapshots_delete_automatic_backups", args=[vm.pk])
            button = format_html('{} <a href="{}">{}</a>', button, url, text % {"count": remaining})
        return format_html("{}<br>{}<br>{}", lines[0], " ".join(lines[1:]), button)

    def save_model(self, request: HttpRequest, obj: VirtualMachine, form: Any, change: bool) -> None:
        """Change the price and the switch through their services."""
        if not change:
            return super().save_model(request, obj, form, change)
        price = obj.hourly_price_micro
        changed = [name for name in form.changed_data if name != "hourly_price_micro"]
        if changed:  # Saving other fields would undo a switch that was flipped meanwhile.
            obj.save(update_fields=changed)
        if "hourly_price_micro" in form.changed_data:
            change_machine_price(vm=obj, hourly_price_micro=price, user=request.user)
        if "name" in changed:
            rename_resource(resource_id=obj.pk, name=obj.name)
        if "deleted_at" in changed and obj.deleted_at:
            end_schedules_of(obj, timezone.now(), request.user)

    def get_urls(self) -> list[Any]:
        view = self.admin_site.admin_view
        return [
            path("<uuid:pk>/automatic-backups/", view(self.switch_one), name="snapshots_switch"),
            path(
                "<uuid:pk>/automatic-backups/delete/",
                view(self.delete_backups),
                name="snapshots_delete_automatic_backups",
            ),
            *super().get_urls(),
        ]

    def get_machine(self, request: HttpRequest, pk: UUID) -> VirtualMachine:
        if not self.has_change_permission(request):
            raise PermissionDenied(gettext("You can view instances, but not change them."))
        return get_object_or_404(VirtualMachine.objects.select_related("project__customer", "location"), pk=pk)

    def switch_one(self, request: HttpRequest, pk: UUID) -> HttpResponse:
        """Show what it costs or ends and, once confirmed, switch one machine."""
        if request.method != "POST":
            return HttpResponseNotAllowed(["POST"])
        vm = self.get_machine(request, pk)
        back = request.GET.get("back", "")
        if not url_has_allowed_host_and_scheme(back, allowed_hosts={request.get_host()}):
            back = reverse("admin:inventory_virtualmachine_change", args=[pk])
        on = request.POST.get("on") == "1"
        if not request.POST.get("confirmed"):
            return self.confirm_switch(request, [vm], on=on, fields=[("on", "1" if on else "0")], back=back)
        self.switch(request, [vm], on=on)
        return HttpResponseRedirect(back)

    def switch(self, request: HttpRequest, machines: list[VirtualMachine], *, on: bool) -> None:
        """Switch each machine. One that is refused is reported and doesn't stop the others."""
        switched = []
        for vm in machines:
            shown = request.POST.get(f"shown_{vm.pk}", "")
            try:
                vm = switch_automatic_backups(
                    vm=vm, on=on, user=request.user, shown_hourly_micro=int(shown) if shown.isdecimal() else None
                )
                switched.append(vm)
            except ActionRefused as refusal:
                self.message_user(request, f"{vm}: {refusal}", messages.ERROR)
        if not switched:
            return
        if len(switched) > 1:
            sentence = (
                gettext("Automatic backups of %(count)s instances start in %(days)s days. Their members are notified.")
                if on
                else gettext("Automatic backups of %(count)s instances are off. Existing backups stay.")
            )
        elif on:
            sentence = gettext("Automatic backups of %(vm)s: %(state)s. %(cost)s The members are notified.")
        else:
            sentence = gettext("Automatic backups of %(vm)s are off. Existing backups stay.")
        cost = cost_or_reason(switched[0]) if on else ""
        state = state_label(switched[0].automatic_backups_since)
        values = {"count": len(switched), "vm": switched[0], "state": state, "cost": cost, "days": NOTICE.days}
        self.message_user(request, sentence % values, messages.SUCCESS)

    @admin.action(description=_("Switch automatic backups on…"), permissions=["change"])
    def switch_many_on(self, request: HttpRequest, machines: QuerySet[VirtualMachine]) -> HttpResponse | None:
        return self.switch_many(request, machines, on=True)

    @admin.action(description=_("Switch automatic backups off…"), permissions=["change"])
    def switch_many_off(self, request: HttpRequest, machines: QuerySet[VirtualMachine]) -> HttpResponse | None:
        return self.switch_many(request, machines, on=False)

    def switch_many(self, request: HttpRequest, machines: QuerySet[VirtualMachine], *, on: bool) -> HttpResponse | None:
        """Show the total cost or saving and, once confirmed, switch."""
        chosen = list(machines.select_related("project__customer", "location"))
        if request.POST.get("confirmed"):
            self.switch(request, chosen, on=on)
            return None
        fields = [("action", "switch_many_on" if on else "switch_many_off")]
        fields += [(ACTION_CHECKBOX_NAME, str(vm.pk)) for vm in chosen]
        return self.confirm_switch(request, chosen, on=on, fields=fields, back=request.get_full_path())

    def confirm_switch(
        self,
        request: HttpRequest,
        machines: list[VirtualMachine],
        *,
        on: bool,
        fields: list[tuple[str, str]],
        back: str,
    ) -> HttpResponse:
        """Show what the switch of each machine costs or ends. The page posts the `fields` to its own address."""
        prices = automatic_hourly_prices(machines, at=timezone.now())
        totals: dict[str, int] = defaultdict(int)
        rows = []
        for vm in machines:
            hourly = rating.hourly_micro(rate_micro=vm.hourly_price_micro, size_gb=None)
            result, monthly = "", ""
            if bool(vm.automatic_backups_since) == on:
                result = _("No change: already on.") if on else _("No change: already off.")
            elif on and vm.deleted_at:
                result = _("Refused: the instance has been deleted.")
            elif on and prices[vm.pk] is None:
                result = _("Refused: VM Backup is not sold in this location.")
            else:
                result = price_label(vm, hourly)
                monthly = money.format_amount(hourly * rating.HOURS_PER_MONTH, currency_of(vm))
                totals[currency_of(vm)] += hourly
                if on:
                    fields = [*fields, (f"shown_{vm.pk}", str(hourly))]
            base = money.format_rate(vm.hourly_price_micro, currency_of(vm))
            rows.append({"vm": vm, "base": base, "result": result, "monthly": monthly})
        context = {
            **self.admin_site.each_context(request),
            "opts": self.opts,
            "title": _("Switch automatic backups on") if on else _("Switch automatic backups off"),
            "on": on,
            "rows": rows,
            "totals": [
                {
                    "hourly": money.format_price(micro, currency),
                    "monthly": money.format_amount(micro * rating.HOURS_PER_MONTH, currency),
                }
                for currency, micro in totals.items()
            ],
            "hours": rating.HOURS_PER_MONTH,
            "days": NOTICE.days,
            "starts_at": format_instant(timezone.now() + NOTICE),
            "fields": [*fields, ("confirmed", "yes")],
            "back": back,
        }
        return render(request, "snapshots/admin/switch.html", context)

    def delete_backups(self, request: HttpRequest, pk: UUID) -> HttpResponse:
        vm = self.get_machine(request, pk)
        back = reverse("admin:inventory_virtualmachine_change", args=[pk])
        if request.method == "POST":
            try:
                count = delete_automatic_backups(vm=vm, user=request.user)
            except ActionRefused as refusal:
                self.message_user(request, str(refusal), messages.ERROR)
            else:
                text = ngettext("%(count)s backup is being deleted.", "%(count)s backups are being deleted.", count)
                self.message_user(request, text % {"count": count}, messages.SUCCESS)
            return HttpResponseRedirect(back)
        context = {
            **self.admin_site.each_context(request),
            "opts": self.opts,
            "title": _("Delete automatic backups"),
            "vm": vm,
            "backups": automatic_backups(vm).order_by("-created_at"),
            "back": back,
        }
        return render(request, "snapshots/admin/delete_automatic_backups.html", context)


def switch_button(vm: VirtualMachine, *, back: str = "", form: str = "") -> SafeString:
    """Return a button that submits the surrounding form, or the one with the id `form`, to the switch."""
    if vm.deleted_at and not vm.automatic_backups_since:
        return SafeString()
    url = reverse("admin:snapshots_switch", args=[vm.pk])
    return format_html(
        '<button class="button" formaction="{}" formnovalidate name="on" value="{}"{} aria-label="{}">{}</button>',
        f"{url}?{urlencode({'back': back})}" if back else url,
        "0" if vm.automatic_backups_since else "1",
        format_html(' form="{}"', form) if form else "",
        (
            _("Switch off automatic backups of %(vm)s")
            if vm.automatic_backups_since
            else _("Switch on automatic backups of %(vm)s")
        )
        % {"vm": vm.name},
        _("Switch off") if vm.automatic_backups_since else _("Switch on"),
    )


def state_label(since: datetime | None) -> str:
    if since is None:
        return gettext("Off")
    return gettext("On") if since <= timezone.now() else gettext("On from %(time)s") % {"time": format_instant(since)}


def currency_of(vm: VirtualMachine) -> str:
    return vm.project.customer.currency


def price_label(vm: VirtualMachine, hourly_micro: int | None) -> str:
    if hourly_micro is None:
        return gettext("not sold in %(location)s") % {"location": vm.location_id}
    return gettext("%(price)s / Hour") % {"price": money.format_price(hourly_micro, currency_of(vm))}


def cost_sentence(quote: Quote) -> str:
    """Return the formula and the monthly amount."""
    return gettext("%(formula)s, %(monthly)s for %(hours)s hours (30.5 days).") % {
        "formula": quote.formula,
        "monthly": money.format_amount(quote.monthly_micro, quote.currency),
        "hours": rating.HOURS_PER_MONTH,
    }


def cost_or_reason(vm: VirtualMachine) -> str:
    """Return what automatic backups cost, or why they have no price: they may be on where they are no longer sold."""
    try:
        return cost_sentence(automatic_backup_quote(vm=vm))
    except NotSold as refusal:
        return str(refusal)


def default_sentence(location: Location) -> str:
    count = location.default_retention_count
    text = ngettext(
        "%(interval)s at %(time)s in the customer's time zone; %(count)s backup is kept.",
        "%(interval)s at %(time)s in the customer's time zone; %(count)s backups are kept.",
        count,
    )
    return text % {
        "interval": location.get_default_interval_display(),
        "time": location.default_at.strftime("%H:%M"),
        "count": count,
    }


class BackupLocationForm(LocationForm):
    """A location with the default schedule of automatic backups, which follows the rules of every schedule."""

    def clean(self) -> dict[str, Any]:
        cleaned: dict[str, Any] = super().clean() or self.cleaned_data
        names = [f"default_{name}" for name in SCHEDULE_FIELDS]
        if all(name in cleaned for name in names):
            try:
                fields = clean_schedule_fields(**{name: cleaned[f"default_{name}"] for name in SCHEDULE_FIELDS})
            except InvalidSchedule as refusal:
                self.add_error(f"default_{refusal.field}", str(refusal))
            else:
                cleaned |= {f"default_{name}": value for name, value in fields.items()}
        return cleaned


class BackupLocationAdmin(LocationAdmin):
    form = BackupLocationForm
    fieldsets = [
        (None, {"fields": ["code", "city", "country", "region", "active", "driver", "driver_options", "encryption"]}),
        (
            _("Automatic backups"),
            {
                "fields": [f"default_{name}" for name in SCHEDULE_FIELDS],
                "description": _(
                    "When instances with automatic backups are backed up. A change applies to all of them, including those "
                    "that are already on."
                ),
            },
        ),
        (
            _("Snapshots made or deleted in the cloud"),
            {
                "fields": ["charges_outside", "charges_missing"],
                "description": _(
                    "A change applies from the next sync on, never to the time before. The sync notifies the members of "
                    "what it starts to charge."
                ),
            },
        ),
    ]

    def save_model(self, request: HttpRequest, obj: Location, form: Any, change: bool) -> None:
        super().save_model(request, obj, form, change)
        if change and any(name.startswith("default_") for name in form.changed_data):
            fields = default_schedule_fields(obj)
            if count := change_default_schedule(location=obj, **fields, user=request.user):
                text = ngettext("%(count)s instance follows.", "%(count)s instances follow.", count)
                self.message_user(request, text % {"count": count}, messages.SUCCESS)


for model, model_admin in ((VirtualMachine, MachineAdmin), (Location, BackupLocationAdmin)):
    admin.site.unregister(model)
    admin.site.register(model, model_admin)
