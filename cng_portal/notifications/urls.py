from django.urls import path

from . import views

app_name = "notifications"
urlpatterns = [
    path("", views.notification_list, name="list"),
    path("read/", views.mark_all_read, name="mark_all_read"),
    path("<uuid:notification_id>/", views.open_notification, name="open"),
    path("<uuid:notification_id>/resend/", views.resend, name="resend"),
]
