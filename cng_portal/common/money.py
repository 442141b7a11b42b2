"""Amounts of money: integers of a millionth of the currency (`_micro`), their rounding, and how they are written."""

from decimal import Decimal

from babel.core import get_global
from babel.numbers import format_decimal, get_currency_name, get_currency_symbol

from .formats import current_locale

MICRO = 1_000_000
MICRO_DIGITS = 6
RATE_DIGITS = 4
DEFAULT_CURRENCY = "MMK"
# Digits after the point where they are not two: ISO 4217. CLDR, and so Babel, has other ones, such as none for the kyat.
DIGITS = {
    **dict.fromkeys("BIF CLP DJF GNF ISK JPY KMF KRW PYG RWF UGX VND VUV XAF XOF XPF".split(), 0),
    **dict.fromkeys("BHD IQD JOD KWD LYD OMR TND".split(), 3),
    **dict.fromkeys("CLF UYW".split(), 4),
}
SYMBOLS = {"MMK": "K"}  # CLDR has no symbol for the kyat


def currency_choices() -> list[tuple[str, str]]:
    """Return (ISO 4217 code, name) of every currency that is legal tender somewhere today."""
    periods = [period for periods in get_global("territory_currencies").values() for period in periods]
    codes = {code for code, _start, end, is_tender in periods if is_tender and end is None}
    return [(code, f"{code} – {get_currency_name(code, locale=current_locale())}") for code in sorted(codes)]


def digits(currency: str) -> int:
    return DIGITS.get(currency, 2)


def unit_micro(currency: str) -> int:
    """Return the smallest amount that is charged, in millionths: 10,000 for K 0.01, 1,000,000 for ¥ 1."""
    return int(10 ** (MICRO_DIGITS - digits(currency)))


def round_half_even(numerator: int, denominator: int) -> int:
    """Return the integer nearest to the quotient; the even one of two equally near. The only rounding of money."""
    quotient, rest = divmod(numerator, denominator)
    return quotient + (2 * rest > denominator or (2 * rest == denominator and quotient % 2 == 1))


def to_micro(amount: Decimal) -> int:
    """Raises ValueError for an amount that is not finite or finer than a millionth."""
    if not amount.is_finite():
        raise ValueError(f"{amount} is not an amount.")
    micro = amount.scaleb(MICRO_DIGITS)
    if micro != micro.to_integral_value():
        raise ValueError(f"{amount} has more than {MICRO_DIGITS} decimals.")
    return int(micro)


def to_decimal(micro: int, places: int = MICRO_DIGITS) -> Decimal:
    """Return the amount with exactly this many decimals, rounded half to even."""
    return Decimal(round_half_even(micro, 10 ** (MICRO_DIGITS - places))).scaleb(-places)


def format_count(count: int) -> str:
    """`16,384`: hours, GB."""
    return f"{count:,}"


def symbol(currency: str) -> str:
    return SYMBOLS.get(currency) or get_currency_symbol(currency, locale=current_locale())


def format_amount(micro: int, currency: str) -> str:
    """`K 99,455.79`, `¥ 99,456`, `KWD 99,455.790`: the currency's own digits."""
    return _format(micro, digits(currency), currency)


def format_whole(micro: int, currency: str) -> str:
    """`K 99,456`: for the axis of a chart."""
    return _format(micro, 0, currency)


def format_price(micro: int, currency: str) -> str:
    """`K 20.00`, `K 0.0004`: the price of one hour, with more digits where it is finer than the currency's."""
    return _format(micro, max(digits(currency), _digits_needed(micro)), currency)


def format_rate(micro: int, currency: str) -> str:
    """`K 0.4000`: a price per GB and hour, with four decimals, or up to six if they aren't zero."""
    return _format(micro, max(RATE_DIGITS, _digits_needed(micro)), currency)


def _format(micro: int, places: int, currency: str) -> str:
    amount = to_decimal(micro, places)
    pattern = "#,##0." + "0" * places if places else "#,##0"
    number = format_decimal(abs(amount), format=pattern, locale=current_locale())
    # The sign goes before the currency; an amount that rounds to nothing has none.
    return f"{'-' if amount < 0 else ''}{symbol(currency)} {number}"


def _digits_needed(micro: int) -> int:
    return len(f"{abs(micro) % MICRO:06d}".rstrip("0"))
