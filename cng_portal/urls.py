from allauth.account.decorators import secure_admin_login
from django.contrib import admin
from django.urls import include, path
from django.views.generic import RedirectView

from snapshots.views import components, dashboard, projects

# one door: administrators sign in where everybody does, under the same limits on attempts
admin.site.login = secure_admin_login(admin.site.login)  # type: ignore[method-assign]
# and change their password where everybody does, so that the log has it and the person is told
own_password = RedirectView.as_view(pattern_name="account_change_password")
admin.site.password_change = lambda request, extra_context=None: own_password(request)  # type: ignore

# Nothing has a page elsewhere: Django's way there fails with what is no key, and leads to an error with what is one.
desk, label, namespace = admin.site.urls
desk = [one for one in desk if getattr(one, "name", "") != "view_on_site"]

handler500 = "cng_portal.common.full_disk.server_error"
urlpatterns = [
    path("", dashboard, name="dashboard"),
    path("projects/", projects.projects, name="projects"),
    path("projects/new/", projects.new, name="new_project"),
    path("projects/<uuid:project_id>/", projects.project, name="project"),
    path("projects/<uuid:project_id>/rename/", projects.rename, name="rename_project"),
    path("projects/<uuid:project_id>/archive/", projects.archive, name="archive_project"),
    path("projects/<uuid:project_id>/unarchive/", projects.unarchive, name="unarchive_project"),
    path("components/", components, name="components"),
    path("help/", include("snapshots.help_urls")),
    path("", include("snapshots.urls")),
    path("", include("cng_portal.accounts.urls")),
    path("profile/", include("cng_portal.activity.urls")),
    path("notifications/", include("cng_portal.notifications.urls")),
    path("billing/", include("billing.urls")),
    path("accounts/", include("allauth.account.urls")),
    # our page of both lists stands before allauth's
    path("accounts/2fa/", RedirectView.as_view(pattern_name="accounts:security"), name="mfa_index"),
    path("accounts/2fa/webauthn/", RedirectView.as_view(pattern_name="accounts:security"), name="mfa_list_webauthn"),
    path("accounts/2fa/", include("allauth.mfa.urls")),
    path("admin/", (desk, label, namespace)),
]
