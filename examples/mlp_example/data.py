"""The digits: a data set for the engine, the files it is read from, and where to download all of MNIST."""

from __future__ import annotations

import gzip
import hashlib
import math
import struct
import zlib
from collections.abc import Sequence
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import numpy as np
import torch
from numpy.typing import NDArray

from scaling.core import BaseDataset, DataError, MicroBatch

NO_DIGIT = -1
SUBSET = Path(__file__).parent / "digits"
MIRRORS = ("https://ossci-datasets.s3.amazonaws.com/mnist", "https://storage.googleapis.com/cvdf-datasets/mnist")
SHA256 = {
    "train-images-idx3-ubyte.gz": "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
    "train-labels-idx1-ubyte.gz": "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
    "t10k-images-idx3-ubyte.gz": "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
    "t10k-labels-idx1-ubyte.gz": "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
}


class Digits(BaseDataset[tuple[NDArray[np.uint8], int]]):
    """Images of 28 x 28 pixels with the digits they show; `moving` ones shift by up to a pixel from epoch to epoch."""

    def __init__(self, directory: Path | None, part: str, *, moving: bool) -> None:
        files = (directory or SUBSET) / part
        images, labels = read_idx(f"{files}-images-idx3-ubyte", 3), read_idx(f"{files}-labels-idx1-ubyte", 1)
        if images.shape != (len(labels), 28, 28) or labels.max(initial=255 * (len(labels) == 0)) > 9:
            raise DataError(
                f"{files}: images {images.shape} and labels {labels.shape} are not those of MNIST; get them anew"
            )
        self.images, self.labels, self.moving = np.pad(images, ((0, 0), (1, 1), (1, 1))), labels, moving

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[NDArray[np.uint8], int]:
        return self.images[index], int(self.labels[index])

    def collate(self, samples: Sequence[Any], positions: Sequence[int], valid: Sequence[bool]) -> MicroBatch:
        """Cut the images out of their margins. Where depends on their place in the run: alike in every layout."""
        corners = [divmod(position % 9, 3) if self.moving else (1, 1) for position in positions]
        images = [image[y : y + 28, x : x + 28] for (image, _), (y, x) in zip(samples, corners, strict=True)]
        labels = [label if counts else NO_DIGIT for (_, label), counts in zip(samples, valid, strict=True)]
        return MicroBatch(torch.from_numpy(np.stack(images)) / 255, torch.tensor(labels))

    def fingerprint(self) -> str:
        return hashlib.sha256(self.images.tobytes() + self.labels.tobytes()).hexdigest()


def read_idx(name: str, dimensions: int) -> NDArray[np.uint8]:
    """Return the array in an IDX file: 0, 0, type (8: bytes), number of dimensions, sizes, elements."""
    try:
        content = Path(name).read_bytes() if Path(name).exists() else gzip.decompress(Path(f"{name}.gz").read_bytes())
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{name}[.gz] cannot be read: {error}; correct data.directory, or set data.download") from None
    header, start = bytes((0, 0, 8, dimensions)), 4 + 4 * dimensions
    if content[:4] != header:
        raise DataError(f"{name} starts with {content[:4]!r}, not {header!r}: it is no such IDX file; get it anew")
    shape = struct.unpack(f">{dimensions}I", content[4:start].ljust(4 * dimensions, b"\0"))
    if len(content) != start + math.prod(shape):
        raise DataError(f"{name} has {len(content)} bytes, not {start + math.prod(shape)}: it is damaged; get it anew")
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


def download(directory: Path) -> None:
    """Get the files of MNIST that `directory` lacks, or has with another content."""
    for name, digest in SHA256.items():
        path, problems = directory / name, []
        for mirror in MIRRORS:
            if path.exists() and hashlib.sha256(path.read_bytes()).hexdigest() == digest:
                break
            ...
