from allauth.account.decorators import secure_admin_login
from django.contrib import admin
from django.urls import include, path
from django.views.generic import RedirectView

from snapshots.views import components, dashboard, projects, search

# Administrators use the portal's sign-in page, which has rate limits and second factors.
admin.site.login = secure_admin_login(admin.site.login)  # type: ignore[method-assign]
# They also change their password there, so that the change is logged and notified.
change_password = RedirectView.as_view(pattern_name="account_change_password")
admin.site.password_change = lambda request, extra_context=None: change_password(request)  # type: ignore

# No model has a public page. Django's view_on_site crashes on an invalid key and redirects to an error page for a valid one.
admin_urls, admin_app, admin_namespace = admin.site.urls
admin_urls = [pattern for pattern in admin_urls if getattr(pattern, "name", "") != "view_on_site"]

handler404 = "snapshots.api.errors.not_found"
handler500 = "snapshots.api.errors.server_error"
urlpatterns = [
    path("", dashboard, name="dashboard"),
    path("search/", search.search, name="search"),
    path("projects/", projects.projects, name="projects"),
    path("projects/new/", projects.new, name="new_project"),
    path("projects/<uuid:project_id>/", projects.project, name="project"),
    path("projects/<uuid:project_id>/rename/", projects.rename, name="rename_project"),
    path("projects/<uuid:project_id>/files/", projects.share, name="share_files"),
    path("projects/<uuid:project_id>/archive/", projects.archive, name="archive_project"),
    path("projects/<uuid:project_id>/unarchive/", projects.unarchive, name="unarchive_project"),
    path("components/", components, name="components"),
    path("help/", include("snapshots.help_urls")),
    path("", include("snapshots.urls")),
    path("", include("snapshots.api.openstack.urls")),
    path("api/v1/", include("snapshots.api.v1.urls")),
    path("", include("cng_portal.accounts.urls")),
    path("profile/", include("cng_portal.activity.urls")),
    path("profile/api/", include("snapshots.api.page_urls")),
    path("notifications/", include("cng_portal.notifications.urls")),
    path("billing/", include("billing.urls")),
    path("accounts/", include("allauth.account.urls")),
    # The security page replaces allauth's lists of factors.
    path("accounts/2fa/", RedirectView.as_view(pattern_name="accounts:security"), name="mfa_index"),
    path("accounts/2fa/webauthn/", RedirectView.as_view(pattern_name="accounts:security"), name="mfa_list_webauthn"),
    path("accounts/2fa/", include("allauth.mfa.urls")),
    path("admin/", (admin_urls, admin_app, admin_namespace)),
]
