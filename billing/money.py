"""Amounts: integers of a millionth of the currency (`_micro`), how they are rounded, and how people read them."""

from decimal import Decimal

from babel.numbers import format_decimal, get_currency_symbol
from django.utils.translation import ngettext

from cng_portal.common.formats import current_locale

MICRO = 1_000_000
HUNDREDTH_MICRO = 10_000
HUNDREDTH_DIGITS = 2
MAX_DIGITS = 6
SYMBOLS = {"MMK": "K"}  # as the platform writes it; CLDR has no sign for the kyat


def round_half_even(numerator: int, denominator: int) -> int:
    """The nearest integer to the quotient, the even one of two equally near. The only rounding of money there is."""
    quotient, rest = divmod(numerator, denominator)
    return quotient + (2 * rest > denominator or (2 * rest == denominator and quotient % 2 == 1))


def to_micro(amount: Decimal) -> int:
    """Raises ValueError for what is not finite or finer than a millionth."""
    if not amount.is_finite():
        raise ValueError(f"{amount} is not an amount.")
    micro = amount.scaleb(MAX_DIGITS)
    if micro != micro.to_integral_value():
        raise ValueError(f"{amount} has more than {MAX_DIGITS} decimals.")
    return int(micro)


def to_decimal(micro: int, digits: int = MAX_DIGITS) -> Decimal:
    """Rounded to `digits` decimals, half to even, and written with just as many."""
    return Decimal(round_half_even(micro, 10 ** (MAX_DIGITS - digits))).scaleb(-digits)


def format_number(micro: int, digits: int) -> str:
    pattern = "#,##0." + "0" * digits if digits else "#,##0"
    return format_decimal(to_decimal(micro, digits), format=pattern, locale=current_locale())


def format_count(count: int) -> str:
    """`16,384`: hours, GB."""
    return f"{count:,}"


def symbol(currency: str) -> str:
    return SYMBOLS.get(currency) or get_currency_symbol(currency, locale=current_locale())


def _format(micro: int, digits: int, currency: str) -> str:
    rounded = round_half_even(micro, 10 ** (MAX_DIGITS - digits))
    # the sign goes before the currency, and what rounds to nothing has none
    return f"{'-' if rounded < 0 else ''}{symbol(currency)} {format_number(abs(micro), digits)}"


def _digits_needed(micro: int) -> int:
    text = f"{abs(micro) % MICRO:06d}".rstrip("0")
    return len(text)


def format_amount(micro: int, currency: str = "MMK") -> str:
    """`K 99,455.79`: two decimals."""
    return _format(micro, HUNDREDTH_DIGITS, currency)


def format_rate(micro: int, currency: str = "MMK") -> str:
    """`K 0.4000`: four decimals, up to six where they say something."""
    return _format(micro, max(4, _digits_needed(micro)), currency)


def format_price(micro: int, currency: str = "MMK") -> str:
    """`K 20`, `K 20.50`: no decimals when whole, else at least two and as many as it has."""
    digits = _digits_needed(micro)
    return _format(micro, max(2, digits) if digits else 0, currency)


def format_price_or_amount(micro: int, currency: str = "MMK") -> str:
    """`K 20.00`: two decimals, and more where the price of one hour is finer than that."""
    return _format(micro, max(HUNDREDTH_DIGITS, _digits_needed(micro)), currency)


def format_line(*, hours: int, size_gb: int | None, rate_micro: int | None, amount_micro: int, currency: str) -> str:
    """`3 hours × 50 GB × K 0.4000 = K 60.00`; with 20 % of the VM's price in place of the size where it is None."""
    if rate_micro is None:
        return ngettext("%(hours)s hour, no price yet", "%(hours)s hours, no price yet", hours) % {
            "hours": format_count(hours)
        }
    values = {
        "hours": format_count(hours),
        "size": size_gb if size_gb is None else format_count(size_gb),
        "rate": format_rate(rate_micro, currency),
        "amount": format_amount(amount_micro, currency),
    }
    if size_gb is None:
        return (
            ngettext(
                "%(hours)s hour × 20 %% of %(rate)s = %(amount)s",
                "%(hours)s hours × 20 %% of %(rate)s = %(amount)s",
                hours,
            )
            % values
        )
    return (
        ngettext(
            "%(hours)s hour × %(size)s GB × %(rate)s = %(amount)s",
            "%(hours)s hours × %(size)s GB × %(rate)s = %(amount)s",
            hours,
        )
        % values
    )
