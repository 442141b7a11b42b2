"""A table as a PDF file, below a title and some facts.

fpdf2's own table measures and shapes every word, which takes 11 ms a line. Here a line takes less than one: widths are
added up character by character, and only text that needs shaping or another font goes through fpdf2's layout.
"""

import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path

from fpdf import FPDF
from fpdf.fonts import TTFFont

# Debian's fonts-dejavu-core or fonts-noto-core, and fonts-sil-padauk. The installed ones are embedded; a letter is drawn
# with the first font that has it. Without any font the PDF has Latin letters only.
FONTS = [
    "/usr/share/fonts/truetype/dejavu/DejaVuSans.ttf",
    "/usr/share/fonts/truetype/noto/NotoSans-Regular.ttf",
    "/usr/share/fonts/truetype/noto/NotoSansMyanmar-Regular.ttf",
    "/usr/share/fonts/truetype/padauk/Padauk-Regular.ttf",
]
SIZE, SMALL = 9, 8
LINE_HEIGHT, PADDING, BOTTOM = 4.4, 1.2, 15


def is_simple_letter(letter: str) -> bool:
    return letter < "\u0300" or "\u2010" <= letter < "\u2e80"


class CharacterWidths(dict[str, float]):
    """The width of each character at the size of the table."""

    def __init__(self, document: FPDF) -> None:
        super().__init__()
        self.document = document

    def __missing__(self, letter: str) -> float:
        width = self[letter] = self.document.get_string_width(letter)
        return width


class TableDocument(FPDF):
    def __init__(self, title: str, *, heading: Sequence[str], widths: Sequence[float], amounts: bool = False) -> None:
        """`widths` of the columns are in mm, on A4 across. `amounts`: the last column is aligned right."""
        super().__init__(orientation="landscape", format="A4")
        self.heading, self.columns, self.aligns_last = heading, widths, amounts
        self.title_text = title
        self.letters: set[str] = {"\n"}  # of all fonts
        self.simple_letters: set[str] = set()  # that the main font draws one after the other, without shaping
        self.widths = CharacterWidths(self)
        families = []
        for path in FONTS:
            if Path(path).exists():
                families.append(Path(path).stem.lower())
                self.add_font(families[-1], fname=path)
                font = self.fonts[families[-1]]
                letters = set(map(chr, font.cmap)) if isinstance(font, TTFFont) else set()
                self.letters |= letters
                self.simple_letters = self.simple_letters or set(filter(is_simple_letter, letters))
        self.family = families[0] if families else "helvetica"
        self.set_fallback_fonts(families[1:])
        self.has_fonts = bool(families)
        if families:
            self.set_text_shaping(True)  # Myanmar script needs it.
        self.set_title(title)
        self.set_auto_page_break(False)

    def readable(self, text: str) -> str:
        """Replace characters that no font has with question marks, so that everything can be drawn."""
        if not self.has_fonts:
            return text.encode("latin-1", "replace").decode("latin-1")
        if self.letters.issuperset(text):
            return text
        return "".join(letter if letter in self.letters else "?" for letter in text)

    def footer(self) -> None:
        self.set_y(-12)
        self.set_font(self.family, size=SMALL)
        self.cell(0, 6, self.readable(f"{self.title_text} · {self.page_no()}/{{nb}}"), align="R")

    def is_simple(self, text: str) -> bool:
        return not self.has_fonts or self.simple_letters.issuperset(text)

    def width_of(self, text: str) -> float:
        return sum(map(self.widths.__getitem__, text))

    def wrap(self, text: str, width: float) -> list[str]:
        """Break at spaces, and inside a word that is wider than the column."""
        lines: list[str] = []
        for paragraph in text.split("\n"):
            if self.width_of(paragraph) <= width:
                lines.append(paragraph)
                continue
            line = ""
            for word in paragraph.split(" "):
                longer = f"{line} {word}" if line else word
                if self.width_of(longer) <= width:
                    line = longer
                    continue
                if line:
                    lines.append(line)
                *full, line = self._pieces(word, width)
                lines += full
            lines.append(line)
        return lines

    def _pieces(self, word: str, width: float) -> list[str]:
        pieces, piece, used = [], "", 0.0
        for letter in word:
            letter_width = self.width_of(letter)
            # A mark stays with its letter.
            if piece and used + letter_width > width and not unicodedata.category(letter).startswith("M"):
                pieces.append(piece)
                piece, used = "", 0.0
            piece += letter
            used += letter_width
        return [*pieces, piece]

    def draw(self, x: float, y: float, width: float, text: str, *, right: bool) -> None:
        if self.is_simple(text):
            self.text(x + width - self.width_of(text) if right else x, y + LINE_HEIGHT * 0.72, text)
            return
        self.set_xy(x - self.c_margin, y)
        self.cell(width + 2 * self.c_margin, LINE_HEIGHT, text, align="R" if right else "L")

    def start(self, facts: Iterable[tuple[str, str]]) -> None:
        """Draw the title, a line for each fact (label, value), and the table's heading."""
        self.add_page()
        self.set_font(self.family, size=16)
        self.cell(0, 10, self.readable(self.title_text), new_x="LMARGIN", new_y="NEXT")
        self.set_font(self.family, size=SIZE)
        for label, value in facts:
            self.multi_cell(0, 5.5, self.readable(f"{label}: {value}"), new_x="LMARGIN", new_y="NEXT", align="L")
        self.ln(4)
        self.set_font(self.family, size=SMALL)
        self.set_fill_color(238, 242, 248)
        self.set_draw_color(205, 212, 222)
        self.row(self.heading, filled=True)

    def row(self, cells: Sequence[str], *, filled: bool = False) -> None:
        """Draw the cells. On a new page the heading comes first."""
        texts = [
            self.wrap(text, width - 2 * PADDING)
            for text, width in zip(map(self.readable, cells), self.columns, strict=True)
        ]
        height = max(map(len, texts)) * LINE_HEIGHT + 2 * PADDING
        if self.get_y() + height > self.h - BOTTOM:
            self.add_page()
            self.row(self.heading, filled=True)
        x, y = self.l_margin, self.get_y()
        if filled:
            self.rect(x, y, sum(self.columns), height, style="F")
        for number, (lines, width) in enumerate(zip(texts, self.columns, strict=True)):
            for line_number, line in enumerate(lines):
                if line:
                    top = y + PADDING + line_number * LINE_HEIGHT
                    right = self.aligns_last and number == len(self.columns) - 1
                    self.draw(x + PADDING, top, width - 2 * PADDING, line, right=right)
            x += width
        self.set_xy(self.l_margin, y + height)
        self.line(self.l_margin, y + height, self.l_margin + sum(self.columns), y + height)
