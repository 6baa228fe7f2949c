"""Loss, perplexity and bits per byte of token data sets: as the evaluation of a training gives them, in any layout."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from scaling.core import (
    Axis,
    BaseDataset,
    BatchGeometry,
    DataError,
    DataRefusedError,
    EvenOrder,
    LossFunction,
    LossOutput,
    MemoryMapDocuments,
    MicroBatch,
    ParallelModule,
    Recipe,
    StepLoss,
    StoredCheckpoint,
    Topology,
    TopologyConfig,
    communicator,
    evaluation_batches,
    evaluation_steps,
    folder_meant,
    load_newest,
    open_documents,
)
from scaling.transformer.config.root import TransformerConfig
from scaling.transformer.data.batch import TextSample
from scaling.transformer.data.load import load_for_evaluation
from scaling.transformer.data.prepare import prepare_data
from scaling.transformer.data.progress import ProgressCallback, silent
from scaling.transformer.data.tokenizer import Tokenizer
from scaling.transformer.evaluation.model import EvaluatedModel
from scaling.transformer.evaluation.settings import evaluation_settings
from scaling.transformer.evaluation.token_bytes import token_bytes
from scaling.transformer.inference.opening import require_precision
from scaling.transformer.io import TextTargets
from scaling.transformer.recipe import recipe_of

_IN_FLIGHT: Final = 4
"""Micro-batches of a step for each pipeline rank: with P ranks, the idle share is (P - 1) / (5 P - 1)."""


@dataclass(frozen=True)
class CorpusLoss:
    """The loss of a model on a data set. Nats and bytes are weighted like targets in the loss, mostly by 0 or 1."""

    data: str
    checkpoint: str
    """The step folder."""
    nats: float
    """Sum over all targets that count."""
    weight: float
    """Sum of the weights of these targets."""
    tokens: int
    """Number of these targets."""
    bytes: float | None
    """UTF-8 bytes of the targets' text; None without a tokenizer."""
    samples: int
    """Number of rows of the model's sequence length."""

    @property
    def loss(self) -> float:
        """Return the nats per target."""
        return self.nats / self.weight

    @property
    def perplexity(self) -> float:
        """Return e to the power of the loss; infinity where that is too large for a float."""
        return math.exp(self.loss) if self.loss < 700 else math.inf

    @property
    def bits_per_byte(self) -> float | None:
        """Return the bits per byte of text; None without a tokenizer, or without any text."""
        return self.nats / math.log(2) / self.bytes if self.bytes else None


@final
class CountingLoss:
    """A loss function that also counts the targets and their bytes."""

    def __init__(self, loss: LossFunction, sizes: Tensor | None) -> None:
        self._loss = loss
        self._sizes = sizes

    def __call__(self, output: Any, targets: TextTargets) -> LossOutput:
        """Return the loss, and the sums `tokens` and `bytes`."""
        found = self._loss(output, targets)
        weights = targets.loss_weights.to(torch.float64)
        counts = {"tokens": (weights != 0).sum()}
        if self._sizes is not None:
            counts["bytes"] = (self._sizes[targets.token_ids] * weights).sum()
        return LossOutput(found.loss_sum, found.weight, counts)


@final
class SomeSamples(BaseDataset[TextSample]):
    """A few samples of a data set, spread evenly over it like those of a limited evaluation of a training."""

    def __init__(self, dataset: BaseDataset[TextSample], count: int) -> None:
        self._dataset = dataset
        self._items = EvenOrder(len(dataset), count).items(np.arange(count, dtype=np.int64))

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: int) -> TextSample:
        return self._dataset[int(self._items[index])]

    def collate(self, samples: Sequence[TextSample], positions: Sequence[int], valid: Sequence[bool]) -> MicroBatch:
        """Make a micro-batch, as the data set does."""
        return self._dataset.collate(samples, positions, valid)

    def fingerprint(self) -> str:
        """Return a digest of the data set and of the choice."""
        return hashlib.sha256(f"{self._dataset.fingerprint()} {len(self)}".encode()).hexdigest()[:32]


def evaluate_corpora(
    checkpoint: Path,
    prefixes: Sequence[Path],
    layout: TopologyConfig,
    topology: Topology,
    *,
    precision: str | None = None,
    samples: int | None = None,
    progress: ProgressCallback = silent,
) -> Iterator[CorpusLoss]:
    """Yield the loss of each data set. Collective: all ranks of `topology`, which is of `layout`.

    The checkpoint, of any layout, is the newest of a directory or a step folder; it holds a whole model, or only
    parameters trained on a base. Each data set is read completely, as the evaluation of that training reads its
    validation data: every sample once in every layout. `samples` is the largest number of samples, spread evenly over
    the data. `precision` converts the weights; None keeps the trained one. Errors of a data set are raised before the
    model is loaded.

    Raises:
        CheckpointError: There is no such checkpoint, its base is missing, or the tokenizer beside it is another one.
        ConfigError: The model cannot be laid out like this.
        DataError: Data are missing, damaged, made with another tokenizer or for a larger vocabulary, or empty.
        DataRefusedError: A loss is not finite.
    """
    if not prefixes:
        return
    require_precision(precision)
    ranks = communicator(topology)

    def load(stored: StoredCheckpoint) -> _Loaded:
        model = EvaluatedModel.of(stored, precision=precision, ranks=ranks)
        return _load(model, prefixes, layout, topology, samples=samples)

    loaded = load_newest(folder_meant(checkpoint), load, ranks)
    for prefix, recipe in zip(prefixes, loaded.recipes, strict=True):
        yield _evaluate(str(prefix), recipe, loaded, progress=progress)


@dataclass(frozen=True)
class _Loaded:
    """A model with the data that it is evaluated on."""

    checkpoint: str
    recipes: Sequence[Recipe]
    """One recipe for each data set."""
    module: ParallelModule
    layout: TopologyConfig
    sizes: Tensor | None
    """Number of bytes of each token."""


def _load(
    model: EvaluatedModel, prefixes: Sequence[Path], layout: TopologyConfig, topology: Topology, *, samples: int | None
) -> _Loaded:
    opened = [_open(model, prefix, layout, samples) for prefix in prefixes]
    steps = micro_batches([len(dataset) for _, dataset in opened], layout)
    layout = layout.model_copy(
        update={
            "gradient_accumulation_steps": steps,
            "global_batch_size": layout.data_parallel_size * layout.micro_batch_size * steps,
        }
    )
    recipes = [recipe_of(config, dataset, dataset) for config, dataset in opened]
    sizes = None if model.tokenizer_file is None else token_bytes(Tokenizer.from_file(model.tokenizer_file))
    counted = _table(sizes, model.architecture.vocab_size or 0, topology)
    return _Loaded(str(model.stored.path), recipes, model.load(recipes[0], topology, layout), layout, counted)


def micro_batches(samples: Sequence[int], layout: TopologyConfig) -> int:
    """Return the number of micro-batches per step on a data rank: enough for the pipeline, no more than there are."""
    at_once = layout.data_parallel_size * layout.micro_batch_size
    useful = _IN_FLIGHT * layout.pipe_parallel_size if layout.pipe_parallel_size > 1 else 1
    return min(useful, max(-(-count // at_once) for count in samples))


def _open(
    model: EvaluatedModel, prefix: Path, layout: TopologyConfig, samples: int | None
) -> tuple[TransformerConfig, BaseDataset[TextSample]]:
    """Open a data set as a training would, with the tokenizer of the checkpoint."""
    config = prepare_data(
        evaluation_settings(model.settings, model.architecture, prefix, layout, vocab_file=model.tokenizer_file)
    )
    _require_tokenizer(model, prefix)
    dataset: BaseDataset[TextSample] = load_for_evaluation(config)
    if samples is not None and samples < len(dataset):
        dataset = SomeSamples(dataset, samples)
    return config, dataset


def _require_tokenizer(model: EvaluatedModel, prefix: Path) -> None:
    """Refuse data of another tokenizer where the training's tokenizer is missing but its digest is known."""
    known = model.settings.get("fingerprints", {}).get("tokenizer")
    if model.tokenizer_file is not None or known is None:
        return
    documents = open_documents(prefix)
    found = documents.meta.tokenizer_sha256 if isinstance(documents, MemoryMapDocuments) else None
    if found is not None and found != known:
        raise DataError(
            f"{prefix} was made with a tokenizer of SHA-256 {found[:16]}..., but {model.stored.path} was trained with "
            f"that of {known[:16]}...; tokenize the data again with the tokenizer of the training"
        )


def _table(sizes: NDArray[np.int64] | None, vocab_size: int, topology: Topology) -> Tensor | None:
    """Return the number of bytes of each token of the model; tokens beyond the tokenizer's have no text."""
    if sizes is None:
        return None
    table = torch.zeros(vocab_size, dtype=torch.float64)
    table[: len(sizes)] = torch.from_numpy(sizes)
    return table.to(topology.device)


def _evaluate(name: str, recipe: Recipe, loaded: _Loaded, *, progress: ProgressCallback) -> CorpusLoss:
    module, layout, topology = loaded.module, loaded.layout, loaded.module.topology
    dataset, loss = recipe.training, CountingLoss(recipe.loss(topology), loaded.sizes)
    geometry = BatchGeometry(layout.data_parallel_size, layout.micro_batch_size, layout.gradient_accumulation_steps)
    batches: Iterator[MicroBatch] = iter(())
    if module.first or module.last:
        batches = evaluation_batches(
            dataset,
            data_parallel_size=geometry.data_parallel_size,
            data_parallel_rank=topology.index(Axis.DATA),
            micro_batch_size=geometry.micro_batch_size,
            gradient_accumulation_steps=geometry.gradient_accumulation_steps,
            device=topology.device,
        )
    total, steps = StepLoss(topology), evaluation_steps(len(dataset), geometry)
    for step in range(steps):
        total.merge(module.eval_step(batches, loss))
        progress(name, step + 1, steps)
    return _result(name, loaded.checkpoint, total, len(dataset))


def _result(name: str, checkpoint: str, total: StepLoss, samples: int) -> CorpusLoss:
    weight, mean = float(total.weight), float(total.loss)
    if not weight:
        raise DataError(f"{name}: none of its {samples} samples has a target that counts; give other data")
    if not math.isfinite(mean):
        raise DataRefusedError(
            f"{name}: the loss of {checkpoint} is {mean}; the weights are not finite, or too large for their type: try "
            "precision float32, or another checkpoint"
        )
    sums = {metric: float(value) * weight for metric, value in total.metrics().items()}
    return CorpusLoss(name, checkpoint, mean * weight, weight, round(sums["tokens"]), sums.get("bytes"), samples)
