"""Django admin of users, customers, projects and credentials."""

from typing import Any
from uuid import UUID

import allauth.account.admin
import allauth.mfa.admin
import allauth.usersessions.admin  # noqa: F401  # registers what is replaced below
from allauth.account.models import EmailAddress
from allauth.mfa.models import Authenticator
from allauth.usersessions.models import UserSession
from django import forms
from django.contrib import admin, messages
from django.contrib.auth.admin import GroupAdmin as DjangoGroupAdmin
from django.contrib.auth.admin import UserAdmin as DjangoUserAdmin
from django.contrib.auth.forms import AdminPasswordChangeForm, BaseUserCreationForm
from django.contrib.auth.forms import UserChangeForm as DjangoUserChangeForm
from django.contrib.auth.models import Group
from django.core.exceptions import PermissionDenied, ValidationError
from django.db.models import Count, Model, Q, QuerySet
from django.forms.models import BaseInlineFormSet
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.urls import path
from django.utils.translation import gettext, ngettext
from django.utils.translation import gettext_lazy as _

from cng_portal.activity import services as activity
from cng_portal.common.admin import Autocomplete, Autocompletes, ReadOnly, SupportAdmin, as_ids, posted_ids

from . import impersonation, roles, services, signals
from .models import ApplicationCredential, Approval, Customer, Membership, Project, Role, User
from .services import lock_customers
from .signin import factors, sessions

admin.site.site_header = _("1CNG administration")
admin.site.site_title = _("1CNG administration")
admin.site.index_title = _("Support desk")
admin.site.site_url = "/"
# Its deletions would bypass the activity log.
admin.site.disable_action("delete_selected")

# Fields that grant rights.
RIGHTS = ("is_staff", "is_superuser", "groups", "user_permissions")


class MembershipFormSet(BaseInlineFormSet):
    def clean(self) -> None:
        """Refuse a second membership of a user, and a project or customer that is left without an owner."""
        super().clean()
        if any(self.errors):
            return
        self.check_added()
        forms = [form for form in self.forms if hasattr(form, "cleaned_data") and form.cleaned_data]
        owners = Membership.objects.filter(role=Role.OWNER, user__is_active=True)
        unlisted = owners.exclude(pk__in=[form.instance.pk for form in forms if form.instance.pk])
        future = [
            (self.project_of(form), form.cleaned_data["user"])
            for form in forms
            if form.cleaned_data.get("role") == Role.OWNER
            and form.cleaned_data["user"].is_active
            and not form.cleaned_data.get("DELETE")
        ]
        for project in self.projects_before(forms):
            had_owner = owners.filter(project=project).exists()
            if had_owner and not unlisted.filter(project=project).exists() and project not in dict(future):
                raise ValidationError(
                    _("“%(project)s” needs at least one owner. Make another member an owner first."),
                    params={"project": project},
                )
            own = {"project__customer": project.customer, "user__customer": project.customer}
            has_own = any({owned.customer_id, user.customer_id} == {project.customer_id} for owned, user in future)
            if owners.filter(**own).exists() and not has_own and not unlisted.filter(**own).exists():
                raise ValidationError(
                    _("%(customer)s needs at least one owner of its own. Make another of its users an owner first."),
                    params={"customer": project.customer.name},
                )

    def check_added(self) -> None:
        """Check the constraints of new memberships, which an inline form skips for fields of the page's own row."""
        for form in self.extra_forms:
            if form.has_changed() and form not in self.deleted_forms:
                try:
                    form.instance.validate_constraints()
                except ValidationError as error:
                    form.add_error(None, error)

    def project_of(self, form: Any) -> Project:
        return self.instance if isinstance(self.instance, Project) else form.cleaned_data["project"]

    def projects_before(self, forms: list[Any]) -> QuerySet[Project]:
        """Return the projects of the listed memberships before the change, which may move a member to another one."""
        is_project_page = isinstance(self.instance, Project)
        ids = {self.instance.pk if is_project_page else form.initial["project"] for form in forms if form.instance.pk}
        return Project.objects.filter(pk__in=ids).select_related("customer").order_by("name")


class MembershipInline(Autocompletes, admin.TabularInline):
    model = Membership
    formset = MembershipFormSet
    extra = 0
    autocomplete_fields = ["user", "project"]

    def get_queryset(self, request: HttpRequest) -> QuerySet[Membership]:
        return super().get_queryset(request).select_related("user", "project")  # for their names


class UserCreationForm(BaseUserCreationForm):
    class Meta:
        model = User
        fields = ("email", "name", "customer")

    def clean_email(self) -> str:
        return self.cleaned_data["email"].lower()


class PasswordForm(AdminPasswordChangeForm):
    """Ends the user's sessions and notifies them."""

    def save(self, commit: bool = True) -> User:
        user: User = super().save(commit)
        sessions.end_all(user)
        signals.notify(
            user,
            lambda: (
                gettext("An administrator changed your password"),
                gettext(
                    "All sessions were ended. If you didn't ask for this, reset your password now and contact your provider."
                ),
            ),
        )
        return user


class UserChangeForm(DjangoUserChangeForm):
    class Meta:
        model = User
        fields = "__all__"

    def clean_email(self) -> str:
        return self.cleaned_data["email"].lower()

    def clean_is_active(self) -> bool:
        is_active: bool = self.cleaned_data["is_active"]
        if self.initial["is_active"] and not is_active:
            if project := roles.owned_only_by(self.instance).first():
                raise ValidationError(
                    _("“%(project)s” needs at least one owner. Make another member an owner first."),
                    params={"project": project},
                )
            self._require_another_owner()
        return is_active

    def clean_customer(self) -> Customer | None:
        customer: Customer | None = self.cleaned_data["customer"]
        if self.initial["is_active"] and (customer and customer.pk) != self.initial["customer"]:
            self._require_another_owner()
        return customer

    def _require_another_owner(self) -> None:
        customer = Customer.objects.filter(pk=self.initial["customer"]).first()
        if customer and roles.is_only_owner(self.instance, customer):
            raise ValidationError(
                _("%(customer)s needs at least one owner of its own. Make another of its users an owner first."),
                params={"customer": customer.name},
            )


@admin.register(User)
class UserAdmin(SupportAdmin, DjangoUserAdmin):
    form = UserChangeForm
    add_form = UserCreationForm
    change_password_form = PasswordForm
    list_display = ["email", "name", "customer", "is_active", "is_staff", "date_joined", "last_login"]
    list_filter = ["is_active", "is_staff"]
    list_select_related = ["customer"]
    search_fields = ["email", "name", "customer__name", "=customer__number"]
    uuid_fields = ("pk", "customer_id")
    ordering = ["email"]
    autocomplete_fields = ["customer"]
    readonly_fields = ["id", "date_joined", "last_login"]
    filter_horizontal = ["groups", "user_permissions"]
    inlines = [MembershipInline]
    fieldsets = [
        (None, {"fields": ["id", "email", "name", "password", "customer", "is_active"]}),
        (_("Administration"), {"fields": RIGHTS}),
        (_("Dates"), {"fields": ["date_joined", "last_login"]}),
    ]
    add_fieldsets = [(None, {"fields": ["email", "name", "customer", "password1", "password2"]})]

    actions = ["end_sessions"]
    change_form_template = "accounts/admin/person.html"

    def lock(self, request: HttpRequest, object_id: str | None) -> None:
        super().lock(request, object_id)
        user, projects = as_ids(object_id), posted_ids(request, "-project")
        of_user = Q(projects__memberships__user__in=user) | Q(people__in=user)
        lock_customers(Customer.objects.filter(of_user | Q(projects__in=projects)))

    def get_inlines(self, request: HttpRequest, obj: User | None) -> list[Any]:
        return self.inlines if obj else []

    def has_change_permission(self, request: HttpRequest, obj: User | None = None) -> bool:
        """Only superusers can change administrators: otherwise an administrator could extend their own rights."""
        allowed = super().has_change_permission(request, obj)
        return allowed and (request.user.is_superuser or obj is None or not (obj.is_staff or obj.is_superuser))

    def get_readonly_fields(self, request: HttpRequest, obj: User | None = None) -> list[str]:
        return [*self.readonly_fields, *(() if request.user.is_superuser else RIGHTS)]

    def save_model(self, request: HttpRequest, obj: User, form: Any, change: bool) -> None:
        super().save_model(request, obj, form, change)
        if "email" in form.changed_data:
            services.delete_other_addresses(obj)
            services.set_verified_email(obj)
        if change and "email" in form.changed_data:
            signals.notify_of_new_email(obj, form.initial["email"], obj.email)
        if change and not obj.is_active:
            sessions.end_all(obj)

    @admin.action(description=_("End all sessions of the selected users"), permissions=["change"])
    def end_sessions(self, request: HttpRequest, users: QuerySet[User]) -> None:
        ended = 0
        for user in users:
            if self.has_change_permission(request, user):
                count = sessions.end_all(user)
                before = {"sessions": count}
                activity.record(action="user.end_session", actor=request.user, target=user, before=before)
                ended += count
        text = ngettext("%(count)s session was ended.", "%(count)s sessions were ended.", ended) % {"count": ended}
        self.message_user(request, text, messages.SUCCESS)

    def get_urls(self) -> list[Any]:
        impersonate = self.admin_site.admin_view(self.impersonate)
        return [path("<uuid:pk>/look-as/", impersonate, name="accounts_impersonate"), *super().get_urls()]

    def impersonate(self, request: HttpRequest, pk: UUID) -> HttpResponse:
        """Confirm, then view the portal as the user."""
        if not self.has_change_permission(request):
            raise PermissionDenied(_("You aren't allowed to view the portal as another user."))
        user = get_object_or_404(User, pk=pk)
        if request.method == "POST":
            try:
                impersonation.begin(request, user)
            except impersonation.ActionRefused as refusal:
                self.message_user(request, str(refusal), messages.ERROR)
            else:
                return redirect("dashboard")
        context = {**self.admin_site.each_context(request), "opts": self.opts, "person": user, "title": str(user)}
        return render(request, "accounts/admin/view_as_user.html", context)


class ProjectInline(ReadOnly, admin.TabularInline):
    model = Project
    fields = ["name", "snapshot_quota", "snapshot_gb_quota", "volume_quota", "volume_gb_quota", "created_at"]
    readonly_fields = fields
    show_change_link = True
    extra = 0


class NewCustomerForm(forms.ModelForm):
    """A new customer needs an owner for its `Default` project; its number is optional."""

    owner = forms.ModelChoiceField(
        User.objects.filter(is_active=True),
        label=_("owner"),
        help_text=_("Owner of the project “Default”, which every customer has. Add the user first."),
    )

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        owner = self.fields["owner"]
        owner.widget = Autocomplete(Membership._meta.get_field("user"), admin.site)
        owner.widget.choices = owner.choices  # type: ignore[attr-defined]
        self.fields["number"].required = False
        self.fields["number"].help_text = _("Leave empty to use the next free number.")


@admin.register(Customer)
class CustomerAdmin(SupportAdmin):
    list_display = [
        "crn",
        "name",
        "billing_type",
        "currency",
        "time_zone",
        "user_count",
        "project_count",
        "created_at",
    ]
    list_filter = ["billing_type"]
    search_fields = ["name", "=number"]
    customer_fields = ("pk",)
    user_fields = ("projects__memberships__user",)
    readonly_fields = ["id", "created_at"]
    inlines = [ProjectInline]

    def get_form(self, request: HttpRequest, obj: Customer | None = None, **kwargs: Any) -> Any:
        return super().get_form(request, obj, **({} if obj else {"form": NewCustomerForm}) | kwargs)

    def get_fieldsets(self, request: HttpRequest, obj: Customer | None = None) -> Any:
        own = ["id", "created_at"] if obj else ["owner"]
        return [
            (None, {"fields": ["name", "number", *own, "billing_type", "currency", "time_zone"]}),
            (_("Quotas"), {"fields": ["snapshot_quota", "snapshot_gb_quota", "volume_quota", "volume_gb_quota"]}),
            (_("Recycle bin"), {"fields": ["recycle_bin_days"]}),
            *([(_("Approvals"), {"fields": ["needs_approval"]})] if obj else []),
        ]

    def get_readonly_fields(self, request: HttpRequest, obj: Customer | None = None) -> list[str]:
        # Amounts are stored without their currency, so changing it would change their value.
        return ["id", "created_at", "number", "currency"] if obj else []

    def get_inlines(self, request: HttpRequest, obj: Customer | None) -> list[Any]:
        return self.inlines if obj else []

    def get_queryset(self, request: HttpRequest) -> QuerySet[Customer]:
        counts = {"user_number": Count("people", distinct=True), "project_number": Count("projects", distinct=True)}
        return super().get_queryset(request).annotate(**counts)

    @admin.display(description=_("users"))
    def user_count(self, customer: Customer) -> int:
        return customer.user_number  # type: ignore[attr-defined]

    @admin.display(description=_("projects"))
    def project_count(self, customer: Customer) -> int:
        return customer.project_number  # type: ignore[attr-defined]

    def save_model(self, request: HttpRequest, obj: Customer, form: Any, change: bool) -> None:
        """Create a customer through the service, with its `Default` project."""
        if change:
            return super().save_model(request, obj, form, change)
        values = {name: value for name, value in form.cleaned_data.items() if name in form.fields}
        obj.pk = services.create_customer(**values).pk
        obj._state.adding = False
        obj.refresh_from_db()


@admin.register(Approval)
class ApprovalAdmin(ReadOnly, SupportAdmin):
    list_display = ["action", "target_name", "customer", "requested_by", "requested_at", "decided_by", "outcome"]
    list_filter = ["action", "outcome"]
    list_select_related = ["customer", "requested_by", "decided_by"]
    search_fields = ["target_name", "reason"]
    uuid_fields = ("pk", "customer_id", "target_id")
    customer_fields = ("customer",)
    user_fields = ("requested_by", "decided_by")


@admin.register(Project)
class ProjectAdmin(SupportAdmin):
    list_display = ["name", "customer", "member_count", "snapshot_quota", "snapshot_gb_quota", "created_at"]
    list_select_related = ["customer"]
    search_fields = ["name", "customer__name", "=customer__number"]
    uuid_fields = ("pk", "customer_id")
    customer_fields = ("customer",)
    user_fields = ("memberships__user",)
    ordering = ["customer__number", "name"]
    autocomplete_fields = ["customer"]
    inlines = [MembershipInline]

    def lock(self, request: HttpRequest, object_id: str | None) -> None:
        super().lock(request, object_id)
        posted = Q(pk__in=posted_ids(request, "customer"))
        lock_customers(Customer.objects.filter(posted | Q(projects__in=as_ids(object_id))))

    def get_readonly_fields(self, request: HttpRequest, obj: Project | None = None) -> list[str]:
        # The project's resources have been charged to its customer.
        return ["id", "customer", "created_at"] if obj else ["id", "created_at"]

    def get_queryset(self, request: HttpRequest) -> QuerySet[Project]:
        return super().get_queryset(request).annotate(member_number=Count("memberships"))

    @admin.display(description=_("members"))
    def member_count(self, project: Project) -> int:
        return project.member_number  # type: ignore[attr-defined]


class CredentialAdmin(ReadOnly, SupportAdmin):
    """Credentials of a user: never shown, but superusers can remove them, which is logged."""

    list_select_related = ["user"]
    uuid_fields = ("user_id",)
    user_fields = ("user",)
    search_fields = ["user__email", "user__name"]

    def has_delete_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        return request.user.is_superuser

    @admin.display(description=_("device"))
    def device(self, session: UserSession) -> str:
        return sessions.describe_device(session.user_agent)

    @admin.display(description=_("factor"))
    def factor(self, authenticator: Authenticator) -> str:
        return signals.describe_factor(authenticator)


class FactorAdmin(CredentialAdmin):
    fields = list_display = ["user", "factor", "created_at", "last_used_at"]
    list_filter = ["type"]

    def delete_model(self, request: HttpRequest, obj: Authenticator) -> None:
        factors.remove_factor(obj, by=request.user)


class SessionAdmin(CredentialAdmin):
    fields = list_display = ["user", "device", "ip", "created_at", "last_seen_at"]

    def delete_model(self, request: HttpRequest, obj: UserSession) -> None:
        before = {"device": sessions.describe_device(obj.user_agent), "address": obj.ip}
        activity.record(action="user.end_session", actor=request.user, target=obj.user, before=before)
        sessions.end_sessions([obj])


@admin.register(ApplicationCredential)
class ApplicationCredentialAdmin(CredentialAdmin):
    """Deleting one ends its tokens at once."""

    fields = list_display = [
        "name", "user", "project", "role", "created_at", "expires_at", "revoked_at", "last_used_at", "last_used_from",
    ]  # fmt: skip
    list_select_related = ["user", "project"]

    def delete_model(self, request: HttpRequest, obj: ApplicationCredential) -> None:
        activity.record(action="credential.revoke", actor=request.user, target=obj, before={"user": str(obj.user)})
        obj.delete()


class AddressAdmin(ReadOnly, SupportAdmin):
    """Read-only: addresses change with the user."""

    list_display = ["email", "user", "primary", "verified"]
    list_select_related = ["user"]
    uuid_fields = ("user_id",)
    user_fields = ("user",)
    search_fields = ["email"]


class GroupAdmin(SupportAdmin, DjangoGroupAdmin):
    """Only superusers grant rights."""

    uuid_fields = ()

    def has_add_permission(self, request: HttpRequest) -> bool:
        return request.user.is_superuser

    def has_change_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        return request.user.is_superuser

    def has_delete_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        return request.user.is_superuser


for model, model_admin in (
    (Group, GroupAdmin),
    (Authenticator, FactorAdmin),
    (UserSession, SessionAdmin),
    (EmailAddress, AddressAdmin),
):
    admin.site.unregister(model)
    admin.site.register(model, model_admin)
