"""The portal's typeface, Geist: a subset for the web, built from its package.

Latin letters and symbols in all weights take 30 kB. Other scripts use the system's fonts (static/tokens.css).
"""

import io
import logging
from importlib import metadata, resources

from fontTools import subset
from fontTools.ttLib import TTFont

from .generated import GeneratedFileFinder

PACKAGE = "fontpkg-geist"
# Latin with accents, punctuation, currencies, letterlike symbols, arrows and mathematical operators.
CHARACTERS = [*range(0x20, 0x250), *range(0x2000, 0x2070), *range(0x20A0, 0x2200), 0x2212]
FEATURES = ["ccmp", "kern", "liga", "locl", "mark", "tnum"]


class TypefaceFinder(GeneratedFileFinder):
    path = "geist.woff2"
    version = f"{PACKAGE}-{metadata.version(PACKAGE)}"

    def generate(self) -> bytes:
        logging.getLogger("fontTools").setLevel(logging.ERROR)
        source = resources.files("fontpkg_geist") / "files" / "Geist[wght].ttf"
        font = TTFont(io.BytesIO(source.read_bytes()))
        options = subset.Options(layout_features=FEATURES)
        subsetter = subset.Subsetter(options)
        subsetter.populate(unicodes=CHARACTERS)
        subsetter.subset(font)
        font.flavor = "woff2"
        content = io.BytesIO()
        font.save(content)
        return content.getvalue()
