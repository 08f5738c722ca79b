"""Numbers as people read them, each in one way everywhere."""

from __future__ import annotations

import math
from collections.abc import Sequence


def fixed(value: float, decimals: int) -> str:
    """A number, or '-' for none; never '-0.0'.

    >>> fixed(94.66, 1), fixed(-0.01, 1), fixed(float("nan"), 1)
    ('94.7', '0.0', '-')
    """
    if not math.isfinite(value):
        return "-"
    text = f"{value:,.{decimals}f}"
    return text.lstrip("-") if not text.strip("-0.,") else text


def signed(value: float, decimals: int) -> str:
    """A difference, with its sign.

    >>> signed(1.25, 1), signed(-3.0, 1), signed(0.0, 1)
    ('+1.2', '-3.0', '0.0')
    """
    text = fixed(value, decimals)
    return f"+{text}" if value > 0 and text.strip("0.,") else text


def spread(mean: float, sd: float | None, decimals: int) -> str:
    """Mean and standard deviation over seeds; of one seed no deviation.

    >>> spread(94.66, 2.04, 1), spread(94.66, None, 1)
    ('94.7 +- 2.0', '94.7')
    """
    known = sd is not None and math.isfinite(sd)
    return fixed(mean, decimals) + (f" +- {fixed(sd or 0.0, decimals)}" if known else "")


def integer(value: int) -> str:
    """A count.

    >>> integer(94464)
    '94,464'
    """
    return f"{value:,}"


def percentage(value: float) -> str:
    """A share in percent that may be far below one.

    >>> percentage(6.2304), percentage(0.0087), percentage(0)
    ('6.23', '0.0087', '0')
    """
    return f"{value:.2f}" if value >= 1 else f"{value:.3g}"


def probability(p: float) -> str:
    """A p-value.

    >>> probability(0.0312), probability(0.00004), probability(1)
    ('0.031', '<0.001', '1.000')
    """
    return "<0.001" if p < 0.001 else f"{p:.3f}"


def rate(value: float) -> str:
    """A learning rate: the shortest way to write it exactly.

    >>> rate(0.003), rate(2e-05), rate(0.5), rate(2.5e-4)
    ('3e-3', '2e-5', '0.5', '2.5e-4')
    """
    if value == 0 or 0.01 <= abs(value) < 1000:
        return f"{value:g}"
    digits, _, power = f"{value:.10e}".partition("e")
    return f"{float(digits):g}e{int(power)}"


def span(values: Sequence[float], text: str) -> str:
    """What stands for several values: `text` if they are one, else the smallest and the largest."""
    low, high = min(values), max(values)
    return text if low == high else f"{low:,} to {high:,}"
