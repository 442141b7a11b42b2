"""The URLs of a snapshot's files, included in those of `snapshots`."""

from django.urls import path

from . import version_views, views

urlpatterns = [
    path("", views.files, name="files"),
    path("<uuid:disk_id>/<int:part>/", views.folder, name="folder"),
    path("<uuid:disk_id>/<int:part>/file/", views.download, name="download_file"),
    path("<uuid:disk_id>/<int:part>/archive/", views.download, {"is_folder": True}, name="download_folder"),
    path("<uuid:disk_id>/<int:part>/history/", version_views.history, name="file_history"),
    path("<uuid:disk_id>/compare/", version_views.compare, name="compare_files"),
    path("<uuid:disk_id>/compare/changes.csv", version_views.compare_csv, name="compare_files_csv"),
]
