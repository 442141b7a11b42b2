from django.urls import path

from . import views

app_name = "accounts"
urlpatterns = [
    path("notices/", views.notice_list, name="notices"),
    path("notices/seen/", views.see_all_notices, name="see_all_notices"),
    path("notices/<uuid:notice_id>/", views.open_notice, name="notice"),
]
