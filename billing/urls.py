from django.urls import path

from . import views

app_name = "billing"
urlpatterns = [
    path("", views.summary, name="summary"),
    path("subscriptions/", views.subscriptions, name="subscriptions"),
    path("credits/", views.credits, name="credits"),
    path("transactions/", views.transactions, name="transactions"),
    path("statement/", views.statement, name="statement"),
]
