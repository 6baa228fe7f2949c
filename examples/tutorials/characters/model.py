"""The text, the layers and the loss: everything that knows what is learnt, and nothing of how it is spread."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scaling.core import (
    BaseConfig,
    BaseDataset,
    ColumnParallelLinear,
    Constant,
    DataError,
    LayerSpec,
    LossFunction,
    LossOutput,
    MicroBatch,
    OnResume,
    Place,
    RowParallelLinear,
    Topology,
    even_shard,
    new_parameter,
)

WINDOW, CHARACTERS = 16, 128
"""How many characters the model sees, and how many there are (ASCII)."""


class Windows(BaseDataset[Tensor]):
    """Every stretch of WINDOW + 1 characters of a text: the last one is to be predicted from those before it."""

    def __init__(self, text: bytes) -> None:
        self.text = torch.frombuffer(bytearray(text), dtype=torch.uint8).long()

    def __len__(self) -> int:
        return len(self.text) - WINDOW

    def __getitem__(self, index: int) -> Tensor:
        return self.text[index : index + WINDOW + 1]

    def collate(self, samples: Sequence[Tensor], positions: Sequence[int], valid: Sequence[bool]) -> MicroBatch:
        rows = torch.stack(list(samples))
        return MicroBatch(rows[:, :-1], (rows[:, -1], torch.tensor(valid)))

    def fingerprint(self) -> str:
        return hashlib.sha256(self.text.numpy().tobytes()).hexdigest()


def read(folder: Path) -> tuple[Windows, Windows]:
    """Return the Markdown files of a folder, nine tenths to train on and one held out."""
    text = "\n".join(path.read_text(encoding="utf-8") for path in sorted(folder.glob("*.md"))).encode(
        "ascii", "replace"
    )
    if len(text) < 100 * WINDOW:
        raise DataError(f"data.folder ({folder}) has {len(text)} characters in files *.md; name one that has more")
    cut = len(text) * 9 // 10
    return Windows(text[:cut]), Windows(text[cut:])


class ModelConfig(BaseConfig):
    on_resume = OnResume.IDENTITY

    num_layers: int = 4
    """Gated layers between the first and the last."""
    width: int = 64
    """Features between the layers."""
    inner: int = 256
    """Features inside a gated layer, which the model ranks divide among them."""


class Read(nn.Module):
    """Characters [b, WINDOW] to features [b, width]: each place in the window has a table of its own."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.table = nn.Embedding(WINDOW * CHARACTERS, width)

    def forward(self, characters: Tensor) -> Tensor:
        places = CHARACTERS * torch.arange(WINDOW, device=characters.device)
        features: Tensor = self.table(characters + places).sum(1) / WINDOW**0.5
        return features


class Gated(nn.Module):
    """Add to x a gated function of it, with a learnt strength for each inner feature. Cut by the inner features."""

    def __init__(self, width: int, inner: int, topology: Topology) -> None:
        super().__init__()
        place = Place(topology)
        self.norm = nn.LayerNorm(width)
        self.gate = ColumnParallelLinear(width, inner, place=place)
        self.value = ColumnParallelLinear(width, inner, place=place)
        mine = even_shard(inner, place.parts, place.index, dim=0, what="inner")
        self.strength = new_parameter((inner,), Constant(1.0), shard=mine)
        self.back = RowParallelLinear(inner, width, place=place)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        change: Tensor = self.back(self.strength * F.silu(self.gate(h)) * self.value(h))
        return x + change


def layers(settings: ModelConfig, topology: Topology) -> list[LayerSpec]:
    """Return the layers in order; each process builds those of its own pipeline stage."""
    return [
        LayerSpec(Read, settings.width),
        *[LayerSpec(Gated, settings.width, settings.inner, topology) for _ in range(settings.num_layers)],
        LayerSpec(nn.Linear, settings.width, CHARACTERS),
    ]


def make_loss(topology: Topology) -> LossFunction:
    """Return the loss function."""
    return loss


def loss(scores: Tensor, targets: tuple[Tensor, Tensor]) -> LossOutput:
    """Return sums over the characters that count; the engine divides them by their number in the whole batch."""
    wanted, valid = targets
    losses = F.cross_entropy(scores, wanted, reduction="none") * valid
    right = (scores.argmax(-1) == wanted) & valid
    return LossOutput(losses.sum(), valid.sum(), {"bits": losses.detach().sum() / math.log(2), "accuracy": right.sum()})
