"""What every wizard's steps have in common: a form for one answer, and the field of the draft that stores it."""

from collections.abc import Callable
from typing import Any, ClassVar

from django import forms
from django.core.exceptions import ValidationError
from django.db.models import QuerySet

from cng_portal.accounts.models import User

from .. import limits
from ..models import Draft

MAX_DRAFTS = 50


class OfferedField(forms.ModelChoiceField):
    """A choice among the rows that `offered` returns for the user and the draft. Text that isn't a UUID is invalid, too."""

    def __init__(self, offered: Callable[[User, Draft], QuerySet[Any]], **kwargs: Any) -> None:
        super().__init__(queryset=None, **kwargs)
        self.offered = offered

    def to_python(self, value: Any) -> Any:
        try:
            return super().to_python(value)
        except ValidationError as error:
            raise ValidationError(self.error_messages["invalid_choice"], code="invalid_choice") from error


class StepForm(forms.Form):
    """The form of one answer of a draft, for `user`."""

    def __init__(self, *args: Any, draft: Draft, user: User, **kwargs: Any) -> None:
        self.draft, self.user = draft, user
        super().__init__(*args, **kwargs)
        for field in self.fields.values():
            if isinstance(field, OfferedField):
                field.queryset = field.offered(user, draft)


class Step:
    """One question. Its answer is the draft's `field`."""

    slug: ClassVar[str]
    label: ClassVar[Any]
    heading: ClassVar[Any]
    intro: ClassVar[Any] = ""
    field: ClassVar[str]
    form_class: ClassVar[type[StepForm]]
    template: ClassVar[str] = ""  # the slug's own
    parent: ClassVar[str] = ""  # the slug of the step that leads here and back; the list of steps shows that one

    @classmethod
    def form(cls, draft: Draft, user: User, data: Any = None) -> StepForm:
        initial = {cls.field: getattr(draft, f"{cls.field}_id", None) or getattr(draft, cls.field)}
        return cls.form_class(data, draft=draft, user=user, initial=initial)

    @classmethod
    def stored(cls, draft: Draft) -> Any:
        """Return the stored answer as form data, empty if there is none."""
        return getattr(draft, f"{cls.field}_id" if hasattr(draft, f"{cls.field}_id") else cls.field)

    @classmethod
    def check(cls, draft: Draft, user: User) -> StepForm:
        """Return the form bound to the stored answer, to validate it again."""
        return cls.form(draft, user, {cls.field: cls.stored(draft)})

    @classmethod
    def store(cls, draft: Draft, form: StepForm) -> Draft:
        """Save the answer and clear the later ones that depend on it. Raises RateLimited for a new draft."""
        answer = form.cleaned_data[cls.field]
        if getattr(draft, cls.field) != answer:
            setattr(draft, cls.field, answer)
            cls.changed(draft)
        save(draft)
        return draft

    @classmethod
    def changed(cls, draft: Draft) -> None:
        pass

    @classmethod
    def answer(cls, draft: Draft) -> object:
        """Return the stored answer to display."""
        return getattr(draft, cls.field)


def save(draft: Draft) -> None:
    """Save the draft. A new one replaces the user's oldest beyond MAX_DRAFTS unfinished ones. Raises RateLimited for it."""
    is_new = draft._state.adding
    if is_new:
        limits.check_draft_rate_limit(draft.created_by)
    # Another tab may have confirmed the draft since it was read: keep its `created_volume`.
    answers = [field.name for field in Draft._meta.concrete_fields if field.name not in ("id", "created_volume")]
    draft.save(update_fields=None if is_new else answers)
    if is_new:
        surplus = limits.unfinished_drafts(draft.created_by).values_list("pk", flat=True)[MAX_DRAFTS:]
        Draft.objects.filter(pk__in=list(surplus)).delete()
