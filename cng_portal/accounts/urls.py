from django.urls import path

from .views import people, profile

app_name = "accounts"
urlpatterns = [
    path("profile/", profile.profile, name="profile"),
    path("profile/theme/", profile.choose_theme, name="choose_theme"),
    path("profile/security/", profile.security, name="security"),
    path("profile/sessions/", profile.session_list, name="sessions"),
    path("profile/sessions/others/end/", profile.end_other_sessions, name="end_other_sessions"),
    path("profile/sessions/<int:session_id>/end/", profile.end_session, name="end_session"),
    path("profile/sign-ins/", profile.sign_ins, name="sign_ins"),
    path("profile/stop-looking/", profile.stop_impersonating, name="stop_impersonating"),
    path("people/<uuid:project_id>/invite/", people.invite, name="invite"),
    path("people/invitations/<uuid:invitation_id>/resend/", people.resend, name="resend"),
    path("people/invitations/<uuid:invitation_id>/revoke/", people.revoke, name="revoke"),
    path("people/<int:membership_id>/role/", people.change_role, name="role"),
    path("people/<int:membership_id>/remove/", people.remove, name="remove"),
    path("invitations/<str:token>/", people.invitation, name="invitation"),
]
