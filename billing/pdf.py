"""Invoices as PDF files."""

from collections.abc import Iterable
from datetime import datetime
from zoneinfo import ZoneInfo

from django.utils.translation import gettext as _

from cng_portal.common import money
from cng_portal.common.pdf import TableDocument

from .models import Invoice
from .statement import Row

WIDTHS = (56, 34, 31, 47, 75, 34)


def invoice_as_pdf(invoice: Invoice, rows: Iterable[Row]) -> bytes:
    zone = ZoneInfo(invoice.time_zone)
    title = _("Invoice %(number)s") % {"number": invoice.number}
    heading = [_("Service"), _("Project"), _("Location"), _("Period"), _("Calculation"), _("Amount")]
    document = TableDocument(title, heading=heading, widths=WIDTHS, amounts=True)
    document.set_creation_date(invoice.made_at)
    facts = [
        (_("Customer"), f"{invoice.customer_name} (#{invoice.customer_number:06d})"),
        (_("Period"), f"{_instant(invoice.starts_at, zone)} - {_instant(invoice.ends_at, zone)} ({invoice.time_zone})"),
        (_("Made"), _instant(invoice.made_at, zone)),
        (_("Total"), money.format_amount(invoice.total_micro, invoice.currency)),
    ]
    document.start(facts)
    for row in rows:
        name = f"{row.name}\n{row.kind_label}"
        if row.corrects_number:
            name += f" ({_('corrects %(number)s') % {'number': row.corrects_number}})"
        if document.readable(row.name) != row.name:
            name += f"\n{row.resource_id}"
        period = f"{_instant(row.from_at, zone)}\n{_instant(row.to_at, zone)}"
        document.row([name, row.project, row.location, period, row.formula, row.amount])
    total = money.format_amount(invoice.total_micro, invoice.currency)
    document.row(["", "", "", "", _("Total"), total])
    return bytes(document.output())


def _instant(instant: datetime, zone: ZoneInfo) -> str:
    return f"{instant.astimezone(zone):%Y-%m-%d %H:%M:%S %z}"
