"""Statistics of a step are those of one process in every layout: exactly, where its arithmetic is exact."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any, cast
from unittest import mock

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from scaling.core.collectives.autograd import copy_to_model, reduce_from_model
from scaling.core.data.types import BaseDataset, MicroBatch
from scaling.core.errors import ConfigError
from scaling.core.nn.embedding import VocabParallelEmbedding
from scaling.core.nn.linear import ColumnParallelLinear, RowParallelLinear
from scaling.core.nn.outputs import Output, placement_of
from scaling.core.nn.place import Place
from scaling.core.nn.shard import Heads, even_shard
from scaling.core.pipeline.layer_spec import LayerSpec, TiedLayerSpec
from scaling.core.pipeline.loss import LossOutput
from scaling.core.statistics.config import TensorStatisticsRecorderConfig
from scaling.core.topology.topology import Topology
from scaling.core.trainer import statistics
from scaling.core.trainer.hooks import TrainerView
from scaling.core.trainer.statistics import StatisticsHook
from scaling.core.training.learner import Learner
from scaling.core.training.recipe import Recipe
from tests.distributed import run_distributed
from tests.reference.worlds import connected, topology_config

TOKENS, FEATURES, LENGTH, BATCH = 8, 4, 4, 8


class Integers:
    """A distribution of small whole numbers: sums and products of them are exact in float64."""

    def sample(self, stream: np.random.Generator, count: int) -> NDArray[np.float32]:
        return stream.integers(-3, 4, count).astype(np.float32)


class Texts(BaseDataset[Tensor]):
    def __len__(self) -> int:
        return 2 * BATCH

    def __getitem__(self, index: int) -> Tensor:
        return torch.tensor([(index * index + 3 * position) % TOKENS for position in range(LENGTH)])

    def collate(self, samples: Sequence[Tensor], positions: Sequence[int], valid: Sequence[bool]) -> MicroBatch:
        return MicroBatch(torch.stack(list(samples)), torch.tensor(valid, dtype=torch.float64))

    def fingerprint(self) -> str:
        return "texts"


def table(place: Place) -> VocabParallelEmbedding:
    return VocabParallelEmbedding(TOKENS, FEATURES, place=place, initializer=Integers())


class Block(nn.Module):
    """Two parallel layers around a kink, and a head between them that model ranks share."""

    def __init__(self, place: Place) -> None:
        super().__init__()
        self.up = ColumnParallelLinear(FEATURES, 2 * FEATURES, place=place, initializer=Integers())
        self.shared = ColumnParallelLinear(FEATURES, Heads(1, FEATURES), place=place, initializer=Integers())
        self.down = RowParallelLinear(2 * FEATURES, FEATURES, place=place, initializer=Integers())

    def forward(self, x: Tensor) -> Tensor:
        raised = self.up(x).relu()
        shared = self.shared(x).repeat(1, 1, raised.shape[-1] // FEATURES)
        moved: Tensor = x + self.down(raised * shared)
        return moved


class TiedHead(nn.Module):
    """The sum of all logits, each times the number of its token."""

    def __init__(self, place: Place) -> None:
        super().__init__()
        self.table = table(place)

    def forward(self, x: Tensor) -> Tensor:
        place, shard = self.table.place, self.table.shard
        logits = copy_to_model(x, place.group) @ self.table.weight.t()
        numbers = torch.arange(shard.offset, shard.offset + shard.length, dtype=torch.float64)
        return reduce_from_model((logits * numbers).sum(-1), place.group)


def layers(topology: Topology) -> list[LayerSpec]:
    place = Place(topology, torch.float64)
    first = TiedLayerSpec(table, place, tie="table", tied_parameters="weight")
    last = TiedLayerSpec(TiedHead, place, tie="table", tied_parameters="table.weight")
    return [first, LayerSpec(Block, place), LayerSpec(Block, place), last]


def loss(output: Tensor, valid: Tensor) -> LossOutput:
    return LossOutput((output * valid.unsqueeze(1)).sum(), valid.sum())


class View:
    """What the hook sees of a trainer, and the numbers that it hands over."""

    def __init__(self, learner: Learner) -> None:
        self.learner = learner
        self.state = SimpleNamespace(step=0)
        self.metrics = self
        self.numbers: dict[int, dict[str, float]] = {}

    def add_vector(self, step: int, names: Sequence[str], values: Tensor) -> None:
        assert all(name.startswith("statistics/") for name in names)
        short = [name.removeprefix("statistics/") for name in names]
        self.numbers[step] = dict(zip(short, values.tolist(), strict=True))


def recorded(
    topology: Topology, config: Mapping[str, Any], steps: int = 1, *, layers: Any = layers, **layout: Any
) -> View:
    """Return what is recorded in the first steps of the exact model, or of other layers."""
    batch = topology_config(global_batch_size=BATCH, **layout)
    recipe = Recipe(layers=layers, loss=lambda topology: loss, training=Texts())
    learner = Learner(recipe, batch, topology)
    view = View(learner)
    hook = StatisticsHook(TensorStatisticsRecorderConfig.from_dict(config), learner)
    trainer = cast(TrainerView, view)
    for step in range(1, steps + 1):
        hook.before_step(trainer)
        _, report = learner.step(step)
        view.state.step = step
        hook.after_step(trainer, report)
    hook.on_exit(trainer, None)
    assert not any(module._forward_hooks for module in learner.module.modules())
    assert learner.optimizer.observer is None
    learner.close()
    return view


SUMS = ["count", "mean", "std", "l1", "max", "min", "abs_max", "abs_min", "pct_zero"]
EVERYTHING = {"interval": 1, "statistics": [["layers.1.up*", [*SUMS, "median", "quantile_90"]], ["*", SUMS]]}
EXACT = ("count", "max", "min", "abs_max", "abs_min", "pct_zero", "median", "quantile_90")


def compare_with_one_process(rank: int, world_size: int) -> None:
    """Record in a layout of eight ranks what one process records."""
    alone = recorded(Topology.single(), EVERYTHING, micro_batch_size=BATCH).numbers[1]
    options: dict[str, Any] = {"micro_batch_size": 1, "activation_checkpointing_type": "every_layer"}
    with connected(pipe=2, data=2, model=2, global_batch_size=BATCH, **options) as topology:
        together = recorded(topology, EVERYTHING, pipe=2, data=2, model=2, **options).numbers[1]
    assert together.keys() == alone.keys()
    for name, value in alone.items():
        exact = name.rpartition("/")[2] in EXACT
        assert together[name] == (value if exact else pytest.approx(value, rel=1e-12)), name


def test_eight_ranks_record_what_one_does_with_recomputation_and_ties() -> None:
    run_distributed(compare_with_one_process, 8)


def test_each_element_counts_once() -> None:
    numbers = recorded(Topology.single(), EVERYTHING, micro_batch_size=2).numbers[1]
    counts = {name: value for name, value in numbers.items() if name.endswith("/count")}
    tokens = BATCH * LENGTH
    assert counts == {
        **{f"{kind}/layers.0.weight/count": TOKENS * FEATURES for kind in ("parameters", "parameter_gradients")},
        **{
            f"{kind}/layers.{layer}.{name}/count": size
            for kind in ("parameters", "parameter_gradients")
            for layer in (1, 2)
            for name, size in (
                *(("up.weight", 32), ("up.bias", 8), ("shared.weight", 16), ("shared.bias", 4)),
                *(("down.weight", 32), ("down.bias", 4)),
            )
        },
        **{
            f"{kind}/layers.{name}/count": tokens * size
            for kind in ("activations", "activation_gradients")
            for name, size in (
                *(("0", 4), ("1", 4), ("1.up", 8), ("1.shared", 4), ("1.down", 4)),
                *(("2", 4), ("2.up", 8), ("2.shared", 4), ("2.down", 4), ("3", 1)),
            )
        },
    }


def gradients_of_the_mean_loss(rank: int, world_size: int) -> None:
    """Compare the gradient of the mean of the outputs with what it is."""
    config = {"interval": 1, "statistics": [["activation_gradients/layers.3", ["max", "min"]]]}
    numbers = recorded(Topology.single(), config, micro_batch_size=2).numbers[1]
    assert set(numbers.values()) == {1 / BATCH}


def test_gradients_are_those_of_the_mean_loss() -> None:
    gradients_of_the_mean_loss(0, 1)


def test_only_steps_that_are_due_are_recorded() -> None:
    view = recorded(Topology.single(), {"interval": 2}, steps=5, micro_batch_size=2)
    assert list(view.numbers) == [2, 4]


def test_layers_are_named_by_their_class_on_request() -> None:
    config = {"interval": 1, "include_module_type": True, "statistics": [["layers.1.Block.up", ["max"]]]}
    numbers = recorded(Topology.single(), config, micro_batch_size=2).numbers[1]
    assert list(numbers) == ["activations/layers.1.Block.up/max", "activation_gradients/layers.1.Block.up/max"]


def test_a_pattern_that_fits_nothing_is_refused_before_the_first_step() -> None:
    with pytest.raises(ConfigError, match=r"'layers\.7\.\*', which fits none of the model's \d+ tensors"):
        recorded(Topology.single(), {"statistics": [["layers.7.*", ["max"]]]}, micro_batch_size=2)


class Half(nn.Module):
    """Hands this rank's part of the features through a module that does not say what it returns, or does."""

    def __init__(self, place: Place, *, says: bool) -> None:
        super().__init__()
        self.up = ColumnParallelLinear(FEATURES, 2 * FEATURES, place=place, initializer=Integers())
        self.kink = Kink(place, says=says)
        self.down = RowParallelLinear(2 * FEATURES, FEATURES, place=place, initializer=Integers())

    def forward(self, x: Tensor) -> Tensor:
        moved: Tensor = self.down(self.kink(self.up(x)))
        return moved


class Kink(nn.Module):
    def __init__(self, place: Place, *, says: bool) -> None:
        super().__init__()
        self.shard = even_shard(2 * FEATURES, place.parts, place.index, dim=0, what="features")
        self.says = says

    def forward(self, x: Tensor) -> Tensor:
        return x.relu()

    def described_outputs(self) -> Mapping[str, Sequence[Output]]:
        return {"": [Output(placement_of(self.shard))]} if self.says else {}


def layers_with_halves(topology: Topology) -> list[LayerSpec]:
    place = Place(topology, torch.float64)
    first, _, _, last = layers(topology)
    return [first, LayerSpec(Half, place, says=True), LayerSpec(Half, place, says=False), last]


def record_halves(rank: int, world_size: int) -> list[str]:
    with (
        mock.patch.object(statistics, "_log") as log,
        connected(model=2, global_batch_size=BATCH, micro_batch_size=BATCH) as topology,
    ):
        options = {"model": 2, "micro_batch_size": BATCH, "layers": layers_with_halves}
        recorded(topology, {"interval": 1}, steps=2, **options)
    return [call.args[0] % call.args[1:] for call in log.warning.mock_calls]


def test_a_part_of_the_features_of_which_nobody_says_that_it_is_one_is_named_once() -> None:
    (warning,), of_the_other = run_distributed(record_halves, 2)
    assert warning.startswith("model ranks return different values, of which statistics are those of the first rank")
    assert "only: activations/layers.2.kink; if each" in warning
    assert of_the_other == []
