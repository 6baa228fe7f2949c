"""Numbers of bytes as people write them."""

from __future__ import annotations

import pytest

from scaling.cli.byte_sizes import bytes_of
from scaling.core.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "number"),
    [
        *(("7", 7), ("0", 0), ("12B", 12), ("1k", 1000), ("1kB", 1000), ("1KiB", 1024), ("3 MB", 3 * 10**6)),
        *(("512MiB", 512 * 2**20), ("2GB", 2 * 10**9), ("2gib", 2**31), ("1TB", 10**12), ("1TiB", 2**40)),
        *(("1.5GB", 15 * 10**8), ("0.1GB", 10**8)),
    ],
)
def test_units_are_powers_of_1000_and_with_an_i_of_1024(text: str, number: int) -> None:
    assert bytes_of(text, option="--size") == number


@pytest.mark.parametrize("text", ["", "GB", "-1", "1e9", "2 bytes", "1ib", "1,5GB", "٣"])
def test_anything_else_is_no_number_of_bytes(text: str) -> None:
    with pytest.raises(ConfigError, match=r"^--size \(.*\) is no number of bytes; write 2GB or 512MiB, say"):
        bytes_of(text, option="--size")
