"""The actions of users, roles, invitations and impersonation in the activity log."""

from django.utils.translation import gettext_lazy as _

from cng_portal.activity.registry import register

register(
    {
        "user.sign_in": _("Signed in"),
        "user.sign_in_failed": _("Sign-in failed"),
        "user.sign_out": _("Signed out"),
        "user.reauthenticate": _("Identity confirmed"),
        "user.request_password_reset": _("Password reset requested"),
        "user.change_password": _("Password changed"),
        "user.request_email_change": _("E-mail change requested"),
        "user.change_email": _("E-mail changed"),
        "user.add_factor": _("Second factor added"),
        "user.remove_factor": _("Second factor removed"),
        "user.generate_recovery_codes": _("Recovery codes generated"),
        "user.end_session": _("Session ended"),
        "user.change": _("Profile changed"),
        "user.join": _("Joined a project"),
        "project.create": _("Project created"),
        "project.rename": _("Project renamed"),
        "project.archive": _("Project archived"),
        "project.share_files": _("Viewers' access to files changed"),
        "project.unarchive": _("Project unarchived"),
        "role.change": _("Role changed"),
        "role.remove": _("Removed from a project"),
        "role.leave": _("Left a project"),
        "invitation.send": _("User invited"),
        "invitation.revoke": _("Invitation revoked"),
        "credential.create": _("Application credential created"),
        "credential.revoke": _("Application credential revoked"),
        "approval.change": _("Approval by a second owner changed"),
        "approval.request": _("Approval requested"),
        "approval.approve": _("Request approved"),
        "approval.reject": _("Request rejected"),
        "approval.withdraw": _("Request withdrawn"),
        "impersonation.start": _("Impersonation started by an administrator"),
        "impersonation.end": _("Impersonation ended by an administrator"),
    }
)
SIGN_INS = ("user.sign_in", "user.sign_in_failed")
