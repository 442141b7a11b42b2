from decimal import Decimal

import pytest

from cng_portal.common import money


@pytest.mark.parametrize(
    ("numerator", "denominator", "rounded"),
    [
        (5, 10, 0),
        (15, 10, 2),
        (25, 10, 2),
        (26, 10, 3),
        (-5, 10, 0),
        (-15, 10, -2),
        (-25, 10, -2),
        (7, 1, 7),
        (0, 3, 0),
    ],
)
def test_half_is_rounded_to_even(numerator, denominator, rounded):
    assert money.round_half_even(numerator, denominator) == rounded


def test_amounts_have_two_decimals_and_unit_prices_four():
    assert money.format_amount(99_455_790_000, "MMK") == "K 99,455.79"
    assert money.format_amount(0, "MMK") == "K 0.00"
    assert money.format_amount(-1_000_000, "MMK") == "-K 1.00"
    assert money.format_amount(-4_000, "MMK") == "K 0.00"
    assert money.format_rate(400_000, "MMK") == "K 0.4000"
    assert money.format_rate(400_001, "MMK") == "K 0.400001"
    assert money.format_price(20_000_000, "MMK") == "K 20.00"
    assert money.format_price(20_500_000, "MMK") == "K 20.50"
    assert money.format_price(400, "MMK") == "K 0.0004"  # an hour of a GB at K 0.0004


@pytest.mark.parametrize(
    ("currency", "amount", "price"),
    [
        ("EUR", "€ 1,234.57", "€ 1,234.5678"),
        ("JPY", "¥ 1,235", "¥ 1,234.5678"),
        ("KRW", "₩ 1,235", "₩ 1,234.5678"),
        ("KWD", "KWD 1,234.568", "KWD 1,234.5678"),
    ],
)
def test_each_currency_has_its_own_digits(currency, amount, price):
    assert money.format_amount(1_234_567_800, currency) == amount
    assert money.format_price(1_234_567_800, currency) == price
    assert money.format_rate(1_234_567_800, currency) == price


def test_only_currencies_that_are_in_use_can_be_chosen():
    codes = [code for code, _name in money.currency_choices()]
    assert {"MMK", "USD", "EUR", "JPY", "KWD"} <= set(codes)
    assert not {"DEM", "XXX", "XAU", "mmk", ""} & set(codes)
    assert money.DIGITS.keys() - {"CLF", "UYW"} <= set(codes)


def test_amounts_are_parsed_as_exact_decimals():
    assert money.to_micro(Decimal("0.4")) == 400_000
    for text in ("NaN", "Infinity", "0.0000001"):
        with pytest.raises(ValueError, match="amount|decimals"):
            money.to_micro(Decimal(text))
