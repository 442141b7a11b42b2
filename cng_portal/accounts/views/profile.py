"""The user's own pages: details, security, sessions, sign-ins."""

from allauth.mfa.models import Authenticator
from allauth.usersessions.models import UserSession
from django.conf import settings
from django.contrib import messages
from django.db import transaction
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.utils.translation import gettext as _
from django.utils.translation import ngettext
from django.views.decorators.http import require_http_methods, require_POST, require_safe

from cng_portal.accounts import impersonation
from cng_portal.accounts.activity import SIGN_INS
from cng_portal.accounts.forms import DetailsForm, ThemeForm
from cng_portal.accounts.models import User
from cng_portal.accounts.requests import Request
from cng_portal.accounts.signin import confirmation, factors, sessions
from cng_portal.activity import services as activity
from cng_portal.activity.models import Activity
from cng_portal.common import preferences
from cng_portal.common.decorators import factor_not_required

SIGN_INS_SHOWN = 100


@require_http_methods(["GET", "POST"])
def profile(request: HttpRequest) -> HttpResponse:
    # A separate instance, so that invalid values don't show in the page's frame.
    user = User.objects.get(pk=request.user.pk)
    form = DetailsForm(request.POST or None, instance=user)
    if request.method == "POST" and form.is_valid():
        before = {name: form.initial[name] for name in form.changed_data}
        with transaction.atomic():
            form.save()
            if form.changed_data:
                after = {name: form.cleaned_data[name] for name in form.changed_data}
                activity.record(action="user.change", actor=user, target=user, before=before, after=after)
        with preferences.localized_for(user):
            messages.success(request, _("Your profile was saved."))
        return redirect("accounts:profile")
    return render(request, "accounts/profile.html", {"form": form})


@factor_not_required
@require_POST
def choose_theme(request: HttpRequest) -> HttpResponse:
    """Store the choice of the switch in the top bar, which has already changed the page's colors."""
    form = ThemeForm(request.POST)
    if not form.is_valid():
        return HttpResponse(_("Unknown theme."), status=400)
    User.objects.filter(pk=request.user.pk).update(theme=form.cleaned_data["theme"])
    return HttpResponse(status=204)


@require_POST
def stop_impersonating(request: Request) -> HttpResponse:
    """End an impersonation."""
    if request.impersonator is None:
        raise Http404
    user = request.user
    impersonation.end(request)
    return redirect("admin:accounts_user_change", user.pk)


@factor_not_required
@require_safe
def security(request: HttpRequest) -> HttpResponse:
    authenticators = list(Authenticator.objects.filter(user=request.user).order_by("created_at"))
    by_type = {
        kind: [factor for factor in authenticators if factor.type == kind]
        for kind in ("totp", "webauthn", "recovery_codes")
    }
    passkeys = [factor.wrap() for factor in by_type["webauthn"]]
    codes = by_type["recovery_codes"]
    context = {
        "totp": by_type["totp"][0] if by_type["totp"] else None,
        "passkeys": passkeys,
        "codes_left": len(codes[0].wrap().get_unused_codes()) if codes else None,
        "is_protected": bool(by_type["totp"] or passkeys),
        "must_add": factors.is_factor_missing(request.user),
    }
    return render(request, "accounts/security.html", context)


@require_safe
def session_list(request: HttpRequest) -> HttpResponse:
    rows = list(sessions.active_sessions(request.user))
    for row in rows:
        row.device = sessions.describe_device(row.user_agent)
        row.is_current = row.session_key == request.session.session_key
    others = sum(not row.is_current for row in rows)
    context = {"sessions": rows, "others": others, "hours": settings.SESSION_IDLE_HOURS}
    return render(request, "accounts/sessions.html", context)


@require_POST
def end_session(request: HttpRequest, session_id: int) -> HttpResponse:
    """End one of the user's other sessions. Needs a recent confirmation: a thief must not sign out the owner."""
    others = sessions.active_sessions(request.user).exclude(session_key=request.session.session_key)
    session = get_object_or_404(others, pk=session_id)
    if not confirmation.is_recent(request):
        return confirmation.request_confirmation(request)
    device = sessions.describe_device(session.user_agent)
    end(request, [session])
    messages.success(request, _("The session on %(device)s was ended.") % {"device": device})
    return redirect("accounts:sessions")


@require_POST
def end_other_sessions(request: HttpRequest) -> HttpResponse:
    if not confirmation.is_recent(request):
        return confirmation.request_confirmation(request)
    others = list(sessions.active_sessions(request.user).exclude(session_key=request.session.session_key))
    end(request, others)
    messages.success(
        request,
        ngettext("%(count)s other session was ended.", "%(count)s other sessions were ended.", len(others))
        % {"count": len(others)},
    )
    return redirect("accounts:sessions")


@transaction.atomic
def end(request: HttpRequest, ended: list[UserSession]) -> None:
    for session in ended:
        before = {"device": sessions.describe_device(session.user_agent), "address": session.ip}
        activity.record(action="user.end_session", actor=request.user, target=request.user, before=before)
    sessions.end_sessions(ended)


@require_safe
def sign_ins(request: HttpRequest) -> HttpResponse:
    """List the latest sign-ins and failed attempts. The activity log has all of them."""
    entries = Activity.objects.filter(actor=request.user, action__in=SIGN_INS).order_by("-at", "-id")
    return render(request, "accounts/sign_ins.html", {"rows": entries[:SIGN_INS_SHOWN], "most": SIGN_INS_SHOWN})
