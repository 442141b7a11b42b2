from django.urls import path

from .views import approvals, members, profile

app_name = "accounts"
urlpatterns = [
    path("profile/", profile.profile, name="profile"),
    path("profile/theme/", profile.choose_theme, name="choose_theme"),
    path("profile/security/", profile.security, name="security"),
    path("profile/sessions/", profile.session_list, name="sessions"),
    path("profile/sessions/others/end/", profile.end_other_sessions, name="end_other_sessions"),
    path("profile/sessions/<int:session_id>/end/", profile.end_session, name="end_session"),
    path("profile/sign-ins/", profile.sign_ins, name="sign_ins"),
    path("profile/stop-impersonating/", profile.stop_impersonating, name="stop_impersonating"),
    path("profile/approvals/", approvals.approval_list, name="approvals"),
    path("profile/approvals/<uuid:approval_id>/", approvals.decide, name="decide_approval"),
    path("members/<uuid:project_id>/invite/", members.invite, name="invite"),
    path("members/invitations/<uuid:invitation_id>/resend/", members.resend, name="resend"),
    path("members/invitations/<uuid:invitation_id>/revoke/", members.revoke, name="revoke"),
    path("members/<int:membership_id>/role/", members.change_role, name="role"),
    path("members/<int:membership_id>/remove/", members.remove, name="remove"),
    path("invitations/<str:token>/", members.invitation, name="invitation"),
]
