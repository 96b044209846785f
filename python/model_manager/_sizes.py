"""Numbers of bytes as people read them."""

from __future__ import annotations


def size_text(count: float) -> str:
    """Bytes in the largest unit that they reach: "512 B", "1.5 KiB", "16 MiB", "90.2 MiB", "1.25 GiB".

    The units are powers of 1024, as their names say. The errors and log lines of the core write the same.
    """
    for unit, name, digits in ((2**30, "GiB", 2), (2**20, "MiB", 1), (2**10, "KiB", 1)):
        if count >= unit:
            return f"{count / unit:.{0 if count % unit == 0 else digits}f} {name}"
    return f"{count:.0f} B"
