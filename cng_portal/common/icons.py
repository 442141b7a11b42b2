"""The icons of the pages as one SVG sprite, built from the heroicons package when static files are collected.

`{% icon %}` of templatetags/portal.py refers to a symbol of it. Pages stay small, and browsers load the file
once. Add a name below to use another icon; tests/test_icons.py compares the list with the templates.
"""

from xml.etree import ElementTree

from heroicons.templatetags.heroicons import heroicon_micro, heroicon_mini, heroicon_outline

from .generated import GeneratedFileFinder

SPRITE = "icons.svg"
# Lines at 24 px, filled shapes at 20 px ("mini") and at 16 px ("micro").
DRAWINGS = {"outline": heroicon_outline, "mini": heroicon_mini, "micro": heroicon_micro}
NAMES = {
    "outline": (
        "archive-box arrow-down-tray arrow-path arrow-right-start-on-rectangle arrow-uturn-left arrows-pointing-out "
        "banknotes bars-3 bell bell-alert bolt bookmark bookmark-slash calendar-days camera check circle-stack "
        "clipboard-document-list clock command-line computer-desktop exclamation-triangle eye finger-print folder "
        "lifebuoy funnel home key link link-slash list-bullet lock-closed lock-open magnifying-glass moon pause "
        "pencil-square play plus question-mark-circle scale server shield-check shield-exclamation square-2-stack "
        "squares-2x2 sun tag trash user-circle wrench-screwdriver x-mark code-bracket"
    ).split(),
    "mini": (
        "check-circle ellipsis-vertical envelope exclamation-circle exclamation-triangle information-circle plus x-circle"
    ).split(),
    "micro": (
        "arrow-down-tray arrow-path bookmark check check-circle chevron-double-left chevron-down chevron-left "
        "chevron-right clock exclamation-circle exclamation-triangle lock-closed minus-circle pause play plus stop "
        "tag trash x-mark"
    ).split(),
}
SYMBOLS = {
    (style, name): name if style == "outline" else f"{name}-{style}" for style, names in NAMES.items() for name in names
}


def build_sprite() -> str:
    sprite = ElementTree.Element("svg", xmlns="http://www.w3.org/2000/svg")
    for (style, name), symbol in SYMBOLS.items():
        drawing = ElementTree.fromstring(DRAWINGS[style](name))
        drawing.tag = "symbol"
        for attribute in ("width", "height", "aria-hidden"):
            del drawing.attrib[attribute]
        drawing.set("id", symbol)
        sprite.append(drawing)
    return ElementTree.tostring(sprite, encoding="unicode")


class SpriteFinder(GeneratedFileFinder):
    path = SPRITE

    def generate(self) -> bytes:
        return build_sprite().encode()
