from django.contrib import admin
from django.urls import include, path

from snapshots.views import dashboard

urlpatterns = [
    path("", dashboard, name="dashboard"),
    path("", include("snapshots.urls")),
    path("billing/", include("billing.urls")),
    path("accounts/", include("allauth.account.urls")),
    path("admin/", admin.site.urls),
]
