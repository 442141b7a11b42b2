from django.urls import path

from .views import help

app_name = "help"
urlpatterns = [
    path("", help.index, name="index"),
    path("<slug:slug>/", help.guide, name="guide"),
]
