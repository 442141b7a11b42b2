from typing import Any

from django.urls import path

from .api import api, openapi, public

app_name = "v1"
patterns: list[Any] = api.urls[0]
for pattern in patterns:
    pattern.callback = public(pattern.callback)
urlpatterns = [path("openapi.json", openapi, name="openapi"), *patterns]
