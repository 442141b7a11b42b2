from django.urls import path

from . import views

app_name = "activity"
urlpatterns = [
    path("activity/", views.activity_log, name="log"),
    path("activity.csv", views.activity_log, {"as_csv": True}, name="csv"),
]
