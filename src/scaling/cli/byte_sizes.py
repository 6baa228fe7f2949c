"""Sizes in bytes as people write them: 2GB, 512MiB."""

from __future__ import annotations

import re
from fractions import Fraction
from typing import Final

from scaling.core.errors import ConfigError

_UNITS: Final = {
    "": 1,
    **{f"{letter}": 1000**power for power, letter in enumerate("kmgt", start=1)},
    **{f"{letter}i": 1024**power for power, letter in enumerate("kmgt", start=1)},
}


def bytes_of(text: str, *, option: str) -> int:
    """Return the number of bytes in a text; kB, MB, GB and TB are powers of 1000, KiB, MiB, GiB and TiB of 1024."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]?i?)b?\s*", text, re.IGNORECASE | re.ASCII)
    unit = None if found is None else _UNITS.get(found[2].lower())
    if found is None or unit is None:
        raise ConfigError(f"{option} ({text}) is no number of bytes; write 2GB or 512MiB, say")
    return int(Fraction(found[1]) * unit)
