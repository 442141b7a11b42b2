"""Base classes for Django admin."""

from typing import Any
from uuid import UUID

from django import forms
from django.contrib import admin, messages
from django.contrib.admin.helpers import ACTION_CHECKBOX_NAME
from django.contrib.admin.options import BaseModelAdmin
from django.contrib.admin.widgets import AutocompleteSelect
from django.contrib.auth import get_user_model
from django.core.exceptions import ObjectDoesNotExist, ValidationError
from django.db import transaction
from django.db.models import Model, Q, QuerySet
from django.http import HttpRequest, HttpResponse
from django.utils.translation import gettext_lazy as _

from .ids import parse_uuid
from .locks import lock_name
from .origin import get_origin


class Autocomplete(AutocompleteSelect):
    """Ignores values that can't be keys. Django's widget crashes on them when it shows a form again."""

    def optgroups(self, name: str, value: list[str], attr: Any = None) -> Any:
        def is_key(text: str) -> bool:
            try:
                return self.field.remote_field.model._meta.pk.to_python(text) is not None
            except ValidationError:
                return False

        return super().optgroups(name, [text for text in value if is_key(text)], attr)


class Choices(forms.ModelMultipleChoiceField):
    """Rejects numbers beyond 64 bits, on which Django's field crashes with SQLite."""

    def _check_values(self, value: Any) -> Any:
        try:
            return super()._check_values(value)
        except OverflowError as error:
            sentence = self.error_messages["invalid_choice"]
            raise ValidationError(sentence, code="invalid_choice", params={"value": max(value, key=len)}) from error


class Autocompletes(BaseModelAdmin):
    """Uses Autocomplete for `autocomplete_fields`."""

    def formfield_for_foreignkey(self, db_field: Any, request: HttpRequest, **kwargs: Any) -> Any:
        if db_field.name in self.get_autocomplete_fields(request):
            kwargs.setdefault("widget", Autocomplete(db_field, self.admin_site))
        return super().formfield_for_foreignkey(db_field, request, **kwargs)


class LockedForm(BaseModelAdmin):
    """Saves a form under a lock, so that it finds each conflict itself and can say what it is."""

    def changeform_view(
        self, request: HttpRequest, object_id: str | None = None, *args: Any, **kwargs: Any
    ) -> HttpResponse:
        with transaction.atomic():
            if request.method == "POST":
                self.lock(request, object_id)
            return super().changeform_view(request, object_id, *args, **kwargs)  # type: ignore[misc]

    def lock(self, request: HttpRequest, object_id: str | None) -> None:
        """Lock what the form reads to find conflicts. Overrides also lock what is written outside of Django admin."""
        lock_name(self.model._meta.label_lower)


def posted_ids(request: HttpRequest, suffix: str) -> set[UUID]:
    """Return the UUIDs among the values of the fields whose names end with `suffix`."""
    values = (str(value) for name, value in request.POST.items() if name.endswith(suffix))
    return {pk for value in values if (pk := parse_uuid(value))}


def as_ids(object_id: str | None) -> list[UUID]:
    """Return the ID in a URL as a list for an `__in` lookup, empty if it isn't a UUID."""
    pk = parse_uuid(object_id or "")
    return [pk] if pk else []


# A part of an address that matches more users than this is too vague; the rest are ignored.
MAX_USERS = 100


class SupportAdmin(LockedForm, Autocompletes, admin.ModelAdmin):
    """Searches by UUID and e-mail address, stays fast with many rows, and never deletes.

    A UUID is compared with `uuid_fields`. An e-mail address finds users, and then rows by `user_fields` and
    `customer_fields`. Anything else is searched for in `search_fields`.
    """

    show_full_result_count = False
    list_per_page = 50
    uuid_fields: tuple[str, ...] = ("pk",)
    user_fields: tuple[str, ...] = ()
    customer_fields: tuple[str, ...] = ()

    def get_search_results(
        self, request: HttpRequest, queryset: QuerySet[Any], search_term: str
    ) -> tuple[QuerySet[Any], bool]:
        term = search_term.strip()
        try:
            uuid = UUID(term)
        except ValueError:
            pass
        else:
            return queryset.filter(_any_of(self.uuid_fields, uuid)), False
        if "@" in term and (self.user_fields or self.customer_fields):
            # Users first: joining them to every row would be slow.
            users = list(
                get_user_model().objects.filter(email__icontains=term).values_list("pk", "customer_id")[:MAX_USERS]
            )
            user_ids = [user_id for user_id, _customer_id in users]
            customers = [customer_id for _user_id, customer_id in users if customer_id]
            by_user = _any_of([f"{field}__in" for field in self.user_fields], user_ids)
            return queryset.filter(
                by_user | _any_of([f"{field}__in" for field in self.customer_fields], customers)
            ), False
        return super().get_search_results(request, queryset, search_term)

    def formfield_for_manytomany(self, db_field: Any, request: HttpRequest, **kwargs: Any) -> Any:
        return super().formfield_for_manytomany(db_field, request, **kwargs | {"form_class": Choices})

    def get_object(self, request: HttpRequest, object_id: str, from_field: str | None = None) -> Any:
        return super().get_object(request, object_id, from_field or None)  # `_to_field=` may be empty

    def response_action(self, request: HttpRequest, queryset: QuerySet[Any]) -> Any:
        """Reject IDs that can't be keys, on which Django crashes."""
        try:
            for key in request.POST.getlist(ACTION_CHECKBOX_NAME):
                self.model._meta.pk.to_python(key)
        except ValidationError:
            sentence = _("Your selection isn't in the list, so nothing was done. Select again.")
            self.message_user(request, sentence, messages.ERROR)
            return None
        return super().response_action(request, queryset)

    def has_delete_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        return False

    def construct_change_message(self, request: HttpRequest, form: Any, formsets: Any, add: bool = False) -> Any:
        """Also pass the values to the activity log: Django logs only the names of the fields."""
        before: dict[str, Any] = {}
        after: dict[str, Any] = {}
        for part in [form, *(inline for formset in formsets or [] for inline in formset.forms)]:
            prefix = "" if part is form else f"{part.instance._meta.verbose_name} {_display_name(part.instance)}: "
            if part.cleaned_data.get("DELETE"):
                before[prefix.removesuffix(": ")] = _("deleted")
            for name in [name for name in part.changed_data if "password" not in name and name != "DELETE"]:
                before[f"{prefix}{name}"] = _display_value(
                    part, name, part.get_initial_for_field(part.fields[name], name)
                )
                after[f"{prefix}{name}"] = _display_value(part, name, part.cleaned_data.get(name))
        origin = get_origin()
        origin.before, origin.after = {} if add else before, after
        return super().construct_change_message(request, form, formsets, add)


def _display_name(row: Model) -> str:
    try:
        return str(row)
    except ObjectDoesNotExist:  # deleted, and its name needs a related row
        return str(row.pk)


def _display_value(form: Any, name: str, value: Any) -> Any:
    """Return the row for a key, so that the log shows its name."""
    rows = getattr(form.fields[name], "queryset", None)
    if rows is not None and value and not isinstance(value, Model | QuerySet | list):
        return rows.filter(pk=value).first() or value
    return value


def _any_of(fields: Any, value: object) -> Q:
    condition = Q()
    for field in fields:
        condition |= Q(**{field: value})
    return condition


class ReadOnly:
    """For an admin or an inline that only shows rows."""

    def has_add_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        return False
