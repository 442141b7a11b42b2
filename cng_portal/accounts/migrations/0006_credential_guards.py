"""A revoked credential never comes back, and none changes hands: it keeps its user, project and secret."""

from django.db import migrations

from cng_portal.common.triggers import Guard, guards

GUARDS = [
    Guard(
        "revoked_credential",
        "BEFORE UPDATE",
        "accounts_applicationcredential",
        "OLD.revoked_at IS NOT NULL AND NEW.revoked_at {differs} OLD.revoked_at",
        "A revoked credential never comes back.",
    ),
    Guard(
        "credential",
        "BEFORE UPDATE",
        "accounts_applicationcredential",
        "NEW.user_id {differs} OLD.user_id OR NEW.project_id {differs} OLD.project_id"
        " OR NEW.secret_hash {differs} OLD.secret_hash",
        "A credential keeps its user, project and secret.",
    ),
]


class Migration(migrations.Migration):
    dependencies = [("accounts", "0005_application_credentials")]
    operations = [guards("accounts", GUARDS)]
