"""Numbers as people read them."""

from __future__ import annotations


def percent(fraction: float | None, digits: int = 2) -> str:
    """Write a fraction as a percentage; a dash where there is none."""
    return "-" if fraction is None else f"{100 * fraction:.{digits}f} %"


def size(count: int) -> str:
    """Write a number of bytes with three figures or so."""
    value = float(count)
    for unit in ("bytes", "kB", "MB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "bytes" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.2f} GB"


def duration(seconds: float) -> str:
    """Write seconds as 4.2 s, 3:05 or 1:02:03."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
