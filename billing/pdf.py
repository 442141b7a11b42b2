"""An invoice as a PDF, for people who file paper."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from zoneinfo import ZoneInfo

from django.utils.translation import gettext as _
from fpdf import FPDF
from fpdf.fonts import FontFace, TTFFont

from cng_portal.common import money

from .models import Invoice
from .statement import Row

# Debian's fonts-dejavu-core or fonts-noto-core, and fonts-sil-padauk. Those that are there are embedded; a letter is
# drawn with the first font that has it. Without any the PDF has Latin letters only.
FONTS = [
    "/usr/share/fonts/truetype/dejavu/DejaVuSans.ttf",
    "/usr/share/fonts/truetype/noto/NotoSans-Regular.ttf",
    "/usr/share/fonts/truetype/noto/NotoSansMyanmar-Regular.ttf",
    "/usr/share/fonts/truetype/padauk/Padauk-Regular.ttf",
]
WIDTHS = (26, 20, 16, 30, 34, 14)


class Page(FPDF):
    def __init__(self, title: str) -> None:
        super().__init__(orientation="landscape", format="A4")
        self.title_text = title
        self.letters: set[int] = set()
        families = []
        for path in FONTS:
            if Path(path).exists():
                families.append(Path(path).stem.lower())
                self.add_font(families[-1], fname=path)
                font = self.fonts[families[-1]]
                self.letters |= font.cmap.keys() if isinstance(font, TTFFont) else set()
        self.family = families[0] if families else "helvetica"
        self.set_fallback_fonts(families[1:])
        if families:  # what Myanmar script needs to have its letters in their places
            self.set_text_shaping(True)
        self.set_title(title)
        self.set_auto_page_break(True, margin=15)

    def readable(self, text: str) -> str:
        """What no font has a letter for becomes a question mark: it is never a reason to have no invoice."""
        if not self.letters:
            return text.encode("latin-1", "replace").decode("latin-1")
        return "".join(letter if ord(letter) in self.letters or letter == "\n" else "?" for letter in text)

    def footer(self) -> None:
        self.set_y(-12)
        self.set_font(self.family, size=8)
        self.cell(0, 6, self.readable(f"{self.title_text} · {self.page_no()}/{{nb}}"), align="R")


def invoice_as_pdf(invoice: Invoice, rows: Iterable[Row]) -> bytes:
    zone = ZoneInfo(invoice.time_zone)
    page = Page(_("Invoice %(number)s") % {"number": invoice.number})
    page.set_creation_date(invoice.made_at)
    page.add_page()
    page.set_font(page.family, size=16)
    page.cell(0, 10, page.readable(page.title_text), new_x="LMARGIN", new_y="NEXT")
    page.set_font(page.family, size=9)
    facts = [
        (_("Customer"), f"{invoice.customer_name} (#{invoice.customer_number:06d})"),
        (_("Period"), f"{_instant(invoice.starts_at, zone)} - {_instant(invoice.ends_at, zone)} ({invoice.time_zone})"),
        (_("Made"), _instant(invoice.made_at, zone)),
        (_("Total"), money.format_amount(invoice.total_micro, invoice.currency)),
    ]
    for label, value in facts:
        page.cell(0, 5.5, page.readable(f"{label}: {value}"), new_x="LMARGIN", new_y="NEXT")
    page.ln(4)
    heading = [_("Service"), _("Project"), _("Location"), _("Period"), _("Calculation"), _("Amount")]
    page.set_font(page.family, size=8)
    style = FontFace(fill_color=(238, 242, 248), emphasis="")
    with page.table(
        col_widths=WIDTHS,
        headings_style=style,
        text_align=("LEFT", "LEFT", "LEFT", "LEFT", "LEFT", "RIGHT"),
        borders_layout="HORIZONTAL_LINES",
        line_height=4.5,
        v_align="TOP",
    ) as table:
        _row(page, table, heading)
        for row in rows:
            name = f"{row.name}\n{row.kind_label}"
            if row.corrects_number:
                name += f" ({_('corrects %(number)s') % {'number': row.corrects_number}})"
            if page.readable(row.name) != row.name:
                name += f"\n{row.resource_id}"
            period = f"{_instant(row.from_at, zone)}\n{_instant(row.to_at, zone)}"
            _row(page, table, [name, row.project, row.location, period, row.formula, row.amount])
        total = money.format_amount(invoice.total_micro, invoice.currency)
        _row(page, table, ["", "", "", "", _("Total"), total])
    return bytes(page.output())


def _row(page: Page, table: object, cells: Sequence[str]) -> None:
    row = table.row()
    for text in cells:
        row.cell(page.readable(text))


def _instant(instant: object, zone: ZoneInfo) -> str:
    return instant.astimezone(zone).strftime("%Y-%m-%d %H:%M:%S %z")
