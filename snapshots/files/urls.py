"""Included in the addresses of `snapshots`, below a snapshot."""

from django.urls import path

from . import views

urlpatterns = [
    path("", views.files, name="files"),
    path("<uuid:disk_id>/<int:part>/", views.folder, name="folder"),
    path("<uuid:disk_id>/<int:part>/file/", views.download, name="download_file"),
    path("<uuid:disk_id>/<int:part>/archive/", views.download, {"is_folder": True}, name="download_folder"),
]
