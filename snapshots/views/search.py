"""The global search: a page, and the window that Ctrl-K opens on every page."""

from django import forms
from django.http import HttpRequest, HttpResponse
from django.utils.translation import gettext_lazy
from django.views.decorators.http import require_GET

from cng_portal.common.names import MAX_NAME_LENGTH
from cng_portal.common.responses import render_part
from snapshots.search import search as find


class SearchForm(forms.Form):
    q = forms.CharField(
        required=False,
        max_length=MAX_NAME_LENGTH,
        error_messages={"max_length": gettext_lazy("A name has at most 120 characters. Shorten the search.")},
    )


@require_GET
def search(request: HttpRequest) -> HttpResponse:
    form = SearchForm(request.GET)
    text = form.cleaned_data["q"] if form.is_valid() else ""
    groups = find(request.user, text)
    context = {
        "q": text or request.GET.get("q", "").strip(),
        "groups": groups,
        "count": sum(len(group.hits) for group in groups),
        "errors": form.errors.get("q"),
    }
    return render_part(request, "search/search.html", "found", context)
