"""Entries of the activity log never change, and are not deleted before they are a year old."""

from django.db import migrations

from cng_portal.common.triggers import Guard, guards

MESSAGE = "An entry of the activity log is never changed, and not deleted before it is a year old."
GUARDS = [
    Guard("update", "BEFORE UPDATE", "activity_activity", "{always}", MESSAGE),
    Guard("delete", "BEFORE DELETE", "activity_activity", "OLD.at > {year_ago}", MESSAGE),
]


class Migration(migrations.Migration):
    dependencies = [("activity", "0001_initial")]
    operations = [guards("activity", GUARDS)]
