"""Entries of the activity log are never changed, and not deleted before they are a year old."""

from django.db import migrations

from cng_portal.common.triggers import Guard, guards

MESSAGE = "An entry of the activity log is never changed, and not deleted before it is a year old."
GUARDS = [
    Guard("activity_update", "BEFORE UPDATE", "accounts_activity", "{always}", MESSAGE),
    Guard("activity_delete", "BEFORE DELETE", "accounts_activity", "OLD.at > {year_ago}", MESSAGE),
]


class Migration(migrations.Migration):
    dependencies = [("accounts", "0001_initial")]
    operations = [guards("accounts", GUARDS)]
