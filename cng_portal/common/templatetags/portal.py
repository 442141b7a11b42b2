"""Template tags and filters of the portal's components, available in every template without loading."""

import re
from collections.abc import Iterable
from datetime import date, datetime, timedelta
from functools import cache
from typing import Any
from uuid import uuid4

from babel.dates import format_date, format_datetime, format_timedelta
from babel.numbers import format_decimal
from django import forms, template
from django.contrib.humanize.templatetags.humanize import intcomma
from django.contrib.staticfiles import finders
from django.template.base import Parser, Token
from django.template.context import Context
from django.templatetags.static import static
from django.utils import timezone
from django.utils.html import format_html
from django.utils.safestring import SafeString
from django.utils.translation import gettext as _
from PIL import Image

from cng_portal.common.formats import current_locale
from cng_portal.common.icons import SPRITE, SYMBOLS
from cng_portal.common.optional import optional
from cng_portal.common.preferences import date_pattern, month_pattern

register = template.Library()


@register.simple_tag(name="icon")
@cache  # a list draws eighty
def draw_icon(name: str, size: int = 20, style: str = "outline", css_class: str = "icon") -> SafeString:
    """Draw an icon of the sprite: `{% icon "camera" 16 "micro" %}`. Decorative: the text beside it says the same."""
    return format_html(
        '<svg class="{}" width="{}" height="{}" aria-hidden="true"><use href="{}#{}"/></svg>',
        css_class,
        size,
        size,
        static(SPRITE),
        SYMBOLS[style, name],
    )


# The countries with a data centre, static/flags/. Windows has no flag emoji and shows two letters instead.
DRAWN_FLAGS = {"MM", "SG"}


@register.simple_tag
@cache
def flag(country: str, emoji: str = "") -> SafeString:
    """Draw the flag of an ISO country code, our own drawing if there is one, else the emoji. Decorative."""
    if country in DRAWN_FLAGS:
        source = static(f"flags/{country.lower()}.svg")
        return format_html('<img class="flag" src="{}" alt="" width="24" height="16">', source)
    return format_html('<span class="flag-emoji" aria-hidden="true">{}</span>', emoji)


@register.simple_tag
def location(place: Any, short: bool = False) -> SafeString:
    """Name a location with its flag: `{% location volume.location %}`; `short=True` leaves the country out."""
    words = format_html('<span class="location-code">{}</span>', place.code)
    if not short:
        country = format_html('<span class="location-country">{}</span>', place.country_name)
        words = format_html('<span class="location-words">{}{}</span>', words, country)
    return format_html('<span class="location">{}{}</span>', flag(place.country, place.flag), words)


BADGE_ICONS = {
    "success": "check-circle",
    "info": "clock",
    "warning": "exclamation-triangle",
    "danger": "exclamation-circle",
}


@register.simple_tag
def badge(label: object, colour: str = "neutral", icon: str = "", busy: bool = False) -> SafeString:
    """Show a state as icon, word and colour (success, info, warning, danger, neutral): `{% badge _("Paused") "warning" %}`.

    `icon` replaces the icon of the colour; `busy` spins it while work is in progress.
    """
    name = "arrow-path" if busy else icon or BADGE_ICONS.get(colour, "minus-circle")
    return format_html(
        '<span class="badge-state badge-{}{}">{}<span>{}</span></span>',
        colour,
        " is-busy" if busy else "",
        draw_icon(name, 16, "micro"),
        label,
    )


# of snapshots, volumes, operations and backup runs
STATE_COLOURS = {
    "ready": "success",
    "succeeded": "success",
    "available": "success",
    "done": "success",
    "passed": "success",
    "proven": "success",
    "pending": "info",
    "waiting": "info",
    "creating": "info",
    "running": "info",
    "deleting": "info",
    "taking": "info",
    "missed": "warning",
    "unfinished": "warning",
    "failed": "danger",
    "error": "danger",
    "missing": "danger",
    "damaged": "danger",
}
BUSY_STATES = {"creating", "running", "deleting", "taking"}


@register.simple_tag
def state(value: str, label: object) -> SafeString:
    """Show a state as a badge: `{% state volume.state volume.get_state_display %}`."""
    return badge(label, STATE_COLOURS.get(value, "neutral"), busy=value in BUSY_STATES)


@register.simple_tag
def volume_state(volume: Any) -> SafeString:
    """Show the state of a volume as a badge; one that is attached to a machine is in use: `{% volume_state volume %}`."""
    if volume.state == "available" and volume.vm_id:
        return badge(_("In use"), STATE_COLOURS[volume.state])
    return state(volume.state, volume.get_state_display())


@cache
def picture_size(path: str) -> tuple[int, int]:
    with Image.open(str(finders.find(path))) as image:
        return image.size


@register.simple_tag
def picture(name: str, text: str) -> SafeString:
    """A picture of the guide, `static/help/NAME.webp`, which `make pictures` takes; `text` describes it.

    With width and height, so that the page doesn't jump when it loads.
    """
    path = f"help/{name}.webp"
    width, height = picture_size(path)
    return format_html(
        '<img class="guide-picture" src="{}" alt="{}" width="{}" height="{}" loading="lazy">',
        static(path),
        text,
        width,
        height,
    )


class OptionalNode(template.Node):
    def __init__(self, name: str, nodelist: template.NodeList) -> None:
        self.name, self.nodelist = name, nodelist

    def render(self, context: Context) -> SafeString:
        return optional(self.name, lambda: self.nodelist.render(context), SafeString())


@register.tag("optional")
def optional_block(parser: Parser, token: Token) -> OptionalNode:
    """`{% optional "bell" %} … {% endoptional %}`: a decoration, omitted and logged if it fails."""
    _tag, name = token.split_contents()
    nodelist = parser.parse(("endoptional",))
    parser.delete_first_token()
    return OptionalNode(name.strip('"'), nodelist)


@register.simple_tag
def form_key() -> SafeString:
    """A hidden key, by which `submit_once` recognizes a form sent twice."""
    return format_html('<input type="hidden" name="form_key" value="{}">', uuid4())


@register.filter("bytes")
def format_bytes(value: int | None) -> str:
    """Bytes with three digits and a unit: `312 MB`, `1.24 GB` (a GB is 1024³ bytes)."""
    if value is None:
        return "–"
    amount, unit = float(value), "B"
    for unit in ("B", "KB", "MB", "GB", "TB"):
        if abs(amount) < 1000 or unit == "TB":
            break
        amount /= 1024
    pattern = "0" if unit == "B" or abs(amount) >= 100 else "0.#" if abs(amount) >= 10 else "0.##"
    return f"{format_decimal(amount, pattern, locale=current_locale())} {unit}"


@register.simple_tag
def size(gb: int | None = None, bytes: int | None = None) -> SafeString:
    """Show a size: `{% size gb=volume.size_gb %}` for whole GB, or `{% size bytes=disk.allocated_bytes %}`."""
    return format_html('<span class="size">{}</span>', format_bytes(bytes) if gb is None else f"{intcomma(gb)} GB")


@register.filter
def unbroken(formula: str) -> str:
    """`3 hours × 50 GB = K 60.00` with line breaks only before an operator, never between a number and its unit."""
    return re.sub(" (?![×=])", "\N{NO-BREAK SPACE}", formula)


@register.filter
def percent(done: int, total: int) -> int:
    """Whole percent of `done` in `total`, rounded down so that 100 means finished; 0 if the total is unknown."""
    return min(100, done * 100 // total) if total else 0


@register.filter
def poll_seconds(work: Iterable[Any], times: int = 1) -> int:
    """The polling interval of operations or runs: a tenth of the age of the youngest, from 2 to 30 seconds, multiplied by
    `times`.
    """
    started = [item.created_at for item in work if item is not None and item.finished_at is None]
    age = (timezone.now() - max(started)).total_seconds() if started else 0
    return times * min(30, max(2, int(age / 10)))


@register.filter
def iso(value: datetime) -> str:
    """ISO 8601, for the `datetime` attribute of `<time>`."""
    return value.isoformat()


@register.filter
def relative(value: datetime | None) -> str:
    """`3 minutes ago`, `in 2 hours`, in the reader's language; "" of None."""
    if value is None:
        return ""
    delta = value - timezone.now()
    if abs(delta.total_seconds()) < 45:
        return _("just now")
    return format_timedelta(delta, add_direction=True, locale=current_locale())


@register.filter
def second(value: datetime) -> str:
    """The instant to the second in the active zone, which the page names elsewhere: `22 Nov 2026, 20:49:03`."""
    return format_datetime(timezone.localtime(value), f"{date_pattern()}, HH:mm:ss", locale=current_locale())


@register.filter
def exact(value: datetime) -> str:
    """The instant to the second in the active zone, with the zone's offset, and the reader's date format:
    `22 Nov 2026, 20:49:03 UTC+06:30`.
    """
    pattern = f"{date_pattern()}, HH:mm:ss 'UTC'xxx"
    return format_datetime(timezone.localtime(value), pattern, locale=current_locale())


@register.simple_tag
def when(value: datetime | None, none: str = "–") -> SafeString:
    """Show a relative time, the exact one on hover and focus: `{% when snapshot.ready_at none=_("Never") %}`."""
    if value is None:
        return format_html('<span class="nothing">{}</span>', none)
    return format_html(
        '<time class="when" datetime="{}" tabindex="0">{}<span class="when-exact">{}</span></time>',
        value.isoformat(timespec="seconds"),
        relative(value),
        exact(value),
    )


def minute(value: datetime) -> str:
    """The instant to the minute in the active zone, for stored texts: `22 Nov 2026, 02:00 UTC+06:30`."""
    pattern = f"{date_pattern()}, HH:mm 'UTC'xxx"
    return format_datetime(timezone.localtime(value), pattern, locale=current_locale())


@register.filter
def day(value: date) -> str:
    """`22 Nov 2026`, in the reader's date format. Instants are converted to the active time zone."""
    if isinstance(value, datetime):
        value = timezone.localtime(value).date()
    return format_date(value, date_pattern(), locale=current_locale())


def near_day(value: date, weekday: str = "") -> str:
    """`3 Nov`, with the year unless it is the current one. `weekday` is a CLDR pattern to prepend: `Tue 3 Nov`."""
    pattern = date_pattern(with_year=value.year != timezone.localdate().year)
    return format_date(value, f"{weekday} {pattern}".strip(), locale=current_locale())


def month(value: date, pattern: str = "") -> str:
    """`November 2026`, in the reader's format or a CLDR pattern."""
    return format_date(value, pattern or month_pattern(), locale=current_locale())


def length_of(value: timedelta, **options: Any) -> str:
    """`3 days`, in the reader's language."""
    return format_timedelta(value, locale=current_locale(), **options)


@register.filter
def initials(value: object) -> str:
    """One or two letters for a user's avatar: `Aye Aye Mon` gives `AM`, an e-mail address its first letter."""
    words = str(value).split("@")[0].split()
    letters = words[0][:1] + (words[-1][:1] if len(words) > 1 else "") if words else ""
    return letters.upper()


@register.simple_tag
def control(field: forms.BoundField, **attrs: str) -> SafeString:
    """Render a bound field's widget with the classes of our style sheet.

    Underscores in names of attributes become hyphens (`hx_get=url`). Django itself adds aria-describedby
    (help and error) and aria-invalid.
    """
    widget = field.field.widget
    if isinstance(widget, forms.CheckboxInput | forms.RadioSelect | forms.CheckboxSelectMultiple):
        css_class = "form-check-input"
    elif isinstance(widget, forms.Select):
        css_class = "form-select"
    else:
        css_class = "form-control"
    own = widget.attrs.get("class", "")
    invalid = "is-invalid" if field.errors else ""
    classes = " ".join(filter(None, (css_class, own, invalid)))
    # Template literals are marked safe without having been escaped; `+ ""` undoes that.
    extra: dict[str, Any] = {name.replace("_", "-"): str(value) + "" for name, value in attrs.items()}
    extra.setdefault("placeholder", False)  # allauth repeats the label in it
    return field.as_widget(attrs={"class": classes, **extra})


@register.filter
def is_checkbox(field: forms.BoundField) -> bool:
    return isinstance(field.field.widget, forms.CheckboxInput)


@register.filter
def error_links(form: forms.BaseForm) -> list[dict[str, object]]:
    """[{"id", "message"}] of a form's errors in the order of its fields; the ID is "" for errors of the whole form."""
    links: list[dict[str, object]] = [{"id": "", "message": message} for message in form.non_field_errors()]
    for field in form:
        links += [{"id": field.auto_id, "message": message} for message in field.errors]
    return links
