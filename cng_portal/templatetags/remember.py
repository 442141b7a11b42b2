"""`{% remember "partials/x.html" a=b %}`: like an include that sees only what it is given, but the same inputs are rendered
once and remembered by the process.

What such a template prints must follow from its inputs, the language, the zone and the format of dates: no `now`, no
relative time, no csrf token, nothing of the request. tests/test_remember.py reads the templates for that.
"""

from collections.abc import Callable
from dataclasses import is_dataclass
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from hashlib import blake2b
from typing import Any
from uuid import UUID

from django import template
from django.core.cache.backends.locmem import LocMemCache
from django.db import connection, models
from django.template.base import FilterExpression, Parser, Token, token_kwargs
from django.template.context import Context
from django.template.engine import Engine
from django.utils import timezone, translation
from django.utils.functional import Promise
from django.utils.safestring import SafeString

from cng_portal.accounts.preferences import date_pattern

register = template.Library()

# of all threads of the process: parts of pages, some KB each, and whole lists, some dozen KB each
STORE = LocMemCache("remembered", {"TIMEOUT": None, "OPTIONS": {"MAX_ENTRIES": 2000}})
BLOCKS = LocMemCache("remembered blocks", {"TIMEOUT": None, "OPTIONS": {"MAX_ENTRIES": 200}})
PLAIN = frozenset((str, int, bool, float, Decimal, UUID, date, datetime, time, timedelta, type(None)))


class Untold(TypeError):
    """Nothing is known of what a template could read of this."""


def facts(value: Any, within: tuple[int, ...] = ()) -> Any:
    """All that a template can read of the value without asking the database, in a form whose `repr` tells values apart.

    Of a model that is what was loaded of it and of its relations, and what a view has put on it. Raises Untold for what is
    neither that nor plain. `within` are the ids of the models around it, to which relations lead back.
    """
    if type(value) in PLAIN:
        return value
    if isinstance(value, SafeString):
        return ("safe", str(value))
    if isinstance(value, models.Model):
        if id(value) in within:
            return ("above", within.index(id(value)))
        within, state = (*within, id(value)), value._state
        return (
            value._meta.label,
            # most are plain, and asked once more here, because this is done for every row of a list
            [
                (name, one if type(one) in PLAIN else facts(one, within))
                for name, one in value.__dict__.items()
                if one is not state
            ],
            facts(state.fields_cache, within),
        )
    if isinstance(value, dict):
        return [(name, one if type(one) in PLAIN else facts(one, within)) for name, one in value.items()]
    if isinstance(value, list | tuple):
        return [facts(one, within) for one in value]
    if is_dataclass(value):
        return (type(value).__name__, facts(vars(value), within))
    if isinstance(value, Promise | str | int):  # a lazy text, an enumeration
        return (type(value).__name__, str(value))
    if isinstance(value, tuple(PLAIN)):  # lazily got
        return repr(value)
    raise Untold(value)


def remembered(inputs: Any, render: Callable[[], SafeString], store: LocMemCache = STORE) -> SafeString:
    """What `render` gave for equal inputs and an equal reader before. It is rendered each time where inputs cannot be told
    apart, and where it asked the database, which says more than follows from the inputs.
    """
    reader = (translation.get_language(), timezone.get_current_timezone_name(), date_pattern())
    try:
        key = blake2b(repr((reader, facts(inputs))).encode(), digest_size=20).hexdigest()
    except Untold:
        return render()
    html: SafeString | None = store.get(key)
    if html is None:
        asked: list[str] = []

        def note(execute: Callable[..., Any], sql: str, *rest: Any) -> Any:
            asked.append(sql)
            return execute(sql, *rest)

        with connection.execute_wrapper(note):
            html = render()
        if not asked:
            store.set(key, html)
    return html


class RememberNode(template.Node):
    def __init__(self, name: str, inputs: dict[str, FilterExpression]) -> None:
        self.name, self.inputs = name, inputs

    def render(self, context: Context) -> SafeString:
        values = {key: expression.resolve(context) for key, expression in self.inputs.items()}
        engine = Engine.get_default()

        def render() -> SafeString:
            return engine.get_template(self.name).render(Context(values))

        # in debug mode, templates change while the process runs
        return render() if engine.debug else remembered((self.name, values), render)


@register.tag
def remember(parser: Parser, token: Token) -> RememberNode:
    name, *words = token.split_contents()[1:]
    inputs = token_kwargs(words, parser)
    if words or name[:1] != '"':
        raise template.TemplateSyntaxError('Write {% remember "partials/x.html" name=value %}.')
    return RememberNode(name.strip('"'), inputs)


class RememberedNode(template.Node):
    def __init__(self, nodelist: template.NodeList, number: int, shown: FilterExpression) -> None:
        self.nodelist, self.number, self.shown = nodelist, number, shown

    def render(self, context: Context) -> SafeString:
        def render() -> SafeString:
            return self.nodelist.render(context)

        shown = self.shown.resolve(context)
        if not shown or Engine.get_default().debug:  # where nobody says what it shows, it is of this page alone
            return render()
        return remembered((self.origin.name, self.number, shown), render, BLOCKS)


@register.tag("remembered")
def remembered_block(parser: Parser, token: Token) -> RememberedNode:
    """`{% remembered shown %} … {% endremembered %}`: what is between them follows from `shown`, which the view has put
    together, as that of `remember` does from its inputs.
    """
    _name, shown = token.split_contents()
    nodelist = parser.parse(("endremembered",))
    parser.delete_first_token()
    return RememberedNode(nodelist, token.lineno or 0, parser.compile_filter(shown))
