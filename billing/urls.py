from django.urls import path

from . import views

app_name = "billing"
urlpatterns = [
    path("", views.summary, name="summary"),
    path("costs.csv", views.summary, {"as_csv": True}, name="summary_csv"),
    path("subscriptions/", views.subscriptions, name="subscriptions"),
    path("subscriptions.csv", views.subscriptions, {"as_csv": True}, name="subscriptions_csv"),
    path("prices/", views.prices, name="prices"),
    path("credits/", views.credits, name="credits"),
    path("credits.csv", views.credits, {"as_csv": True}, name="credits_csv"),
    path("transactions/", views.transactions, name="transactions"),
    path("transactions.csv", views.transactions, {"as_csv": True}, name="transactions_csv"),
    path("statement/", views.statement, name="statement"),
    path("usage.csv", views.statement, {"as_csv": True}, name="usage_csv"),
    path("invoices/<uuid:pk>/", views.invoice, name="invoice"),
    path("invoices/<uuid:pk>.csv", views.invoice_csv, name="invoice_csv"),
    path("invoices/<uuid:pk>.pdf", views.invoice_pdf, name="invoice_pdf"),
]
