"""An index from which the sum of an invoice can be read, in place of the one that leads to its lines.

It is exchanged by hand: to alter the column, SQLite would write the whole table anew, and lose the triggers on it.
"""

import django.db.models.deletion
from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("billing", "0003_never_began")]
    operations = [
        migrations.AddIndex(
            model_name="invoiceline",
            index=models.Index(fields=["invoice", "amount_micro"], name="billing_line_by_invoice"),
        ),
        migrations.SeparateDatabaseAndState(
            database_operations=[
                migrations.RunSQL(
                    "DROP INDEX billing_invoiceline_invoice_id_ff507e12",
                    "CREATE INDEX billing_invoiceline_invoice_id_ff507e12 ON billing_invoiceline (invoice_id)",
                )
            ],
            state_operations=[
                migrations.AlterField(
                    model_name="invoiceline",
                    name="invoice",
                    field=models.ForeignKey(
                        db_index=False,
                        on_delete=django.db.models.deletion.PROTECT,
                        related_name="lines",
                        to="billing.invoice",
                        verbose_name="invoice",
                    ),
                )
            ],
        ),
    ]
