from decimal import Decimal

import pytest

from billing import money


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
def test_half_goes_to_the_even_neighbour(numerator, denominator, rounded):
    assert money.round_half_even(numerator, denominator) == rounded


def test_amounts_and_rates_read_as_on_the_platform():
    assert money.format_amount(99_455_790_000) == "K 99,455.79"
    assert money.format_amount(0) == "K 0.00"
    assert money.format_amount(-1_000_000) == "-K 1.00"
    assert money.format_amount(-4_000) == "K 0.00"
    assert money.format_rate(400_000) == "K 0.4000"
    assert money.format_rate(400_001) == "K 0.400001"
    assert money.format_price(20_000_000) == "K 20"
    assert money.format_price(20_500_000) == "K 20.50"
    assert money.format_price(1_234_567_891) == "K 1,234.567891"
    assert money.format_amount(1_500_000, "EUR") == "€ 1.50"


def test_amounts_come_in_as_exact_decimals():
    assert money.to_micro(Decimal("0.4")) == 400_000
    for text in ("NaN", "Infinity", "0.0000001"):
        with pytest.raises(ValueError, match="amount|decimals"):
            money.to_micro(Decimal(text))
