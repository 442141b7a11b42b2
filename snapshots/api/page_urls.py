from django.urls import path

from . import views

app_name = "api"
urlpatterns = [
    path("", views.credentials, name="credentials"),
    path("v1/", views.reference, name="reference"),
    path("new/", views.new_credential, name="new_credential"),
    path("<uuid:credential_id>/revoke/", views.revoke, name="revoke"),
]
