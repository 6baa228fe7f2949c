"""The digits: a data set for the engine, the files it is read from, and the download of the whole of MNIST."""

from __future__ import annotations

import gzip
import hashlib
import math
import struct
import zlib
from collections.abc import Sequence
from http.client import HTTPException
from pathlib import Path
from urllib.request import urlopen

import torch
from torch import Tensor

from scaling.core import BaseDataset, DataError, MicroBatch

NO_DIGIT = -1
SUBSET, WHOLE = Path(__file__).parent / "digits", Path(".data/mnist")
MIRRORS = ("https://ossci-datasets.s3.amazonaws.com/mnist", "https://storage.googleapis.com/cvdf-datasets/mnist")
SHA256 = {
    "train-images-idx3-ubyte.gz": "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
    "train-labels-idx1-ubyte.gz": "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
    "t10k-images-idx3-ubyte.gz": "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
    "t10k-labels-idx1-ubyte.gz": "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
}
Digit = tuple[Tensor, Tensor]


class Digits(BaseDataset[Digit]):
    """Images of 28 x 28 bytes, and the digits they show. `moving` images shift by up to a pixel from epoch to epoch."""

    def __init__(self, directory: Path, part: str, *, moving: bool) -> None:
        images = read_idx(directory / f"{part}-images-idx3-ubyte", 28, 28)
        labels = read_idx(directory / f"{part}-labels-idx1-ubyte").long()
        if len(images) != len(labels) or labels.max() > 9:
            what = f"{len(images)} {part} images, but {len(labels)} labels up to {labels.max()}"
            raise DataError(f"{directory} has {what}; get the four files of MNIST from one place")
        self.images, self.labels, self.moving = torch.nn.functional.pad(images, (1, 1, 1, 1)), labels, moving

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Digit:
        return self.images[index], self.labels[index]

    def collate(self, samples: Sequence[Digit], positions: Sequence[int], valid: Sequence[bool]) -> MicroBatch:
        images, labels = zip(*samples, strict=True)
        corners = [divmod(position % 9, 3) if self.moving else (1, 1) for position in positions]
        windows = [image[y : y + 28, x : x + 28] for image, (y, x) in zip(images, corners, strict=True)]
        return MicroBatch(torch.stack(windows) / 255, torch.stack(labels).where(torch.tensor(valid), NO_DIGIT))

    def fingerprint(self) -> str:
        return hashlib.sha256(self.images.numpy().tobytes() + self.labels.numpy().tobytes()).hexdigest()


def read_idx(path: Path, *item: int) -> Tensor:
    """Return the bytes [count, *item] in an IDX file: 0, 0, 8 for bytes, how many sizes; the sizes; the elements."""
    path = path if path.exists() else path.with_name(f"{path.name}.gz")
    try:
        content = path.read_bytes() if path.suffix != ".gz" else gzip.decompress(path.read_bytes())
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} cannot be read ({error}); correct data.directory, or set data.download") from error
    count = int.from_bytes(content[4:8], "big")
    header = struct.pack(f">4B{1 + len(item)}I", 0, 0, 8, 1 + len(item), count, *item)
    length = len(header) + count * math.prod(item)
    if count == 0 or len(content) != length or not content.startswith(header):
        found = f"{len(content)} bytes starting with {content[: len(header)].hex()}"
        raise DataError(f"{path} is {found} instead of {length} starting with {header.hex()}; get it anew")
    return torch.frombuffer(bytearray(content), dtype=torch.uint8)[len(header) :].reshape(count, *item)


def download(directory: Path) -> None:
    """Get the files of MNIST that `directory` lacks, each from the first mirror that has it."""
    for name, digest in SHA256.items():
        path, problems = directory / name, []
        if path.exists() and hashlib.sha256(path.read_bytes()).hexdigest() == digest:
            continue
        for mirror in MIRRORS:
            try:
                with urlopen(f"{mirror}/{name}", timeout=30) as response:
                    content = response.read()
                if hashlib.sha256(content).hexdigest() != digest:
                    raise OSError("what it sends is another file")
                directory.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
                break
            except (OSError, HTTPException) as error:
                problems.append(f"{mirror}: {error}")
        else:
            raise DataError(f"{name} cannot be had ({'; '.join(problems)}); put it into {directory} by hand")
