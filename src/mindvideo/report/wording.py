"""How names and numbers are written on the page."""

from __future__ import annotations

import re
from collections.abc import Sequence

CLASSES = {
    "p<0.0001": ("purple", "***", "P < .0001"),
    "p<0.01": ("pink", "**", "P < .01"),
    "p<0.05": ("yellow", "*", "P < .05"),
    "p>0.05": ("green", "", "P > .05"),
}
"""Colour (the paper's Table 1), stars and words of each class of P."""


def join_words(words: Sequence[str]) -> str:
    """``a``, ``a and b``, ``a, b and c``."""
    return " and ".join([", ".join(words[:-1]), words[-1]]) if len(words) > 1 else "".join(words)


def write_number(value: float, decimals: int = 3) -> str:
    """Three decimals, fewer for large numbers, no zero before the point."""
    if abs(value) >= 100:
        return f"{value:.0f}"
    text = f"{value:.{min(1, decimals) if abs(value) >= 10 else decimals}f}"
    if float(text) == 0:
        text = text.lstrip("-")
    return re.sub(r"^(-?)0\.", r"\1.", text).replace("-", "−")


def write_count(value: float) -> str:
    """A whole number, with thin spaces between thousands from ten thousand on."""
    return f"{value:.0f}" if abs(value) < 10000 else f"{value:,.0f}".replace(",", "\u202f")


def write_short(value: float) -> str:
    """Two digits, however small: ``2.4``, ``1.3 × 10⁻⁴``."""
    if value == 0 or 0.01 <= abs(value) < 1000:
        return f"{value:.2g}".replace("-", "−")
    mantissa, _, power = f"{value:.1e}".partition("e")
    raised = str(int(power)).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
    return f"{mantissa} × 10{raised}".replace("-", "−")


def write_signed(value: float) -> str:
    """``+.012`` or ``−.012``."""
    return "+" * (value > 0) + write_number(value)


def write_percent(value: float) -> str:
    """A share as ``57 %``."""
    return f"{round(100 * value)} %".replace("-", "−")


def write_interval(interval: Sequence[float | None]) -> str:
    """``[.190, .240]``, or nothing where an end is not known."""
    return "" if None in interval else f"[{write(interval[0])}, {write(interval[1])}]"


def write_p(p: float) -> str:
    """``P = .012`` or ``P < .001``."""
    return "P < .001" if p < 0.001 else f"P = {write_number(p, 3 if p < 0.1 else 2)}"


def write_seconds(seconds: float) -> str:
    """``3 h 05 min``, ``4 min 12 s`` or ``7.2 s``."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes = seconds / 60
    if minutes < 60:
        return f"{int(minutes)} min {int(seconds % 60):02d} s"
    return f"{int(minutes // 60)} h {int(minutes % 60):02d} min"


def write_bytes(size: float) -> str:
    """``1.4 GB`` or ``310 MB`` (powers of ten)."""
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB"


FORMS = {
    "number": write_number,
    "count": write_count,
    "plain": "{:g}".format,  # as few digits as the number has
    "short": write_short,
    "signed": write_signed,
    "percent": write_percent,
    "p": write_p,
    "seconds": write_seconds,
    "bytes": write_bytes,
}
"""How a number may be written, by name."""


def write(value: float | None, form: str = "number") -> str:
    """A number in a form of `FORMS`; where there is none a dash, of P nothing."""
    if value is None:
        return "" if form == "p" else "–"
    return FORMS[form](value)
