"""Train the small language model in any layout and densely, and join what the ranks of a layout hold."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from scaling.core.boxes import GlobalTensor
from scaling.core.nn.init import part_of_initial_values
from scaling.core.nn.parameter import Piece
from scaling.core.optimizer.config import OptimizerConfig
from scaling.core.optimizer.groups import GroupPattern, ParameterGroup
from scaling.core.optimizer.lr_schedule import LearningRateSchedulerConfig
from scaling.core.optimizer.optimizer import Optimizer
from scaling.core.optimizer.rule import UpdateRule
from scaling.core.pipeline.module import ParallelModule
from scaling.core.topology.config import TopologyConfig
from scaling.core.topology.topology import Topology
from tests.distributed import run_distributed
from tests.reference.assembly import module_and_optimizer
from tests.reference.models import Loss, Model, dense_loss, layer_specs, micro_batches
from tests.reference.worlds import topology_config

SEED = 7
SCHEDULE = LearningRateSchedulerConfig(learning_rate=1e-2, learning_rate_warmup_steps=2)
VECTORS = (r"norm", r"bias$")


def groups_of(rule: UpdateRule | None = None) -> tuple[GroupPattern, ...]:
    """Return two groups: matrices decay (and are updated by `rule`), vectors do not."""
    matrices = ParameterGroup(name="decays", learning_rate_scheduler=SCHEDULE, weight_decay=0.1, rule=rule)
    others = ParameterGroup(name="stays", learning_rate_scheduler=SCHEDULE, weight_decay=0.0)
    return GroupPattern(group=matrices, exclude=VECTORS), GroupPattern(group=others, include=VECTORS)


@dataclass(frozen=True)
class Part:
    """A part of a global tensor, as one rank holds it."""

    key: str
    shape: tuple[int, ...]
    offset: tuple[int, ...]
    values: NDArray[np.float64]
    owned: bool


@dataclass
class History:
    """What one rank saw of a training."""

    losses: list[float] = field(default_factory=list)
    norms: list[float] = field(default_factory=list)
    evaluation: list[float] = field(default_factory=list)
    initial: list[Part] = field(default_factory=list)
    first: list[Part] = field(default_factory=list)
    """Weights and moments after one step."""
    final: list[Part] = field(default_factory=list)


@dataclass
class Outcome:
    """What a training came to, whatever the layout: numbers and whole tensors by name."""

    losses: list[float]
    norms: list[float]
    evaluation: list[float]
    initial: dict[str, Tensor]
    first: dict[str, Tensor]
    final: dict[str, Tensor]


def parts_of(tensors: Iterable[GlobalTensor]) -> list[Part]:
    """Return copies of what this rank holds."""
    return [
        Part(tensor.key, tensor.shape, box.offset, view.detach().double().numpy().copy(), tensor.owned)
        for tensor in tensors
        for box, view in tensor.parts
    ]


def join(by_rank: Sequence[Sequence[Part]]) -> dict[str, Tensor]:
    """Return the whole tensors. Owned parts must cover each once; whoever else holds a part must hold the same."""
    whole: dict[str, NDArray[np.float64]] = {}
    times: dict[str, NDArray[np.int64]] = {}
    everything = [part for parts in by_rank for part in parts]
    for part in everything:
        place = tuple(slice(o, o + n) for o, n in zip(part.offset, part.values.shape, strict=True))
        values = whole.setdefault(part.key, np.zeros(part.shape))
        owners = times.setdefault(part.key, np.zeros(part.shape, dtype=np.int64))
        if part.owned:
            values[place] = part.values
            owners[place] += 1
    for part in everything:
        place = tuple(slice(o, o + n) for o, n in zip(part.offset, part.values.shape, strict=True))
        assert np.array_equal(whole[part.key][place], part.values, equal_nan=True), f"ranks differ in {part.key}"
    for key, owners in times.items():
        assert (owners == 1).all(), f"{key}: elements are owned by {sorted(set(owners.ravel().tolist()))} ranks"
    return {key: torch.from_numpy(values) for key, values in whole.items()}


def train(
    rank: int, world_size: int, model: Model, layout: dict[str, Any], options: dict[str, Any], steps: int
) -> History:
    """Train as one rank of a world."""
    config = topology_config(**{"global_batch_size": model.global_batch, "micro_batch_size": 1, **layout})
    with Topology.connect(config) as topology:
        module, optimizer = build(model, config, topology, options)
        loss_function = Loss(model, topology)
        history = History(initial=parts_of(module.global_tensors()))
        for step in range(1, steps + 1):
            topology.rng.seed(step)
            loss = module.train_step(
                micro_batches(model, step, config, topology), loss_function, gradient_scale=optimizer.gradient_scale
            )
            report = optimizer.step(step, weight=loss.weight)
            history.losses.append(loss.loss.item())
            history.norms.append(report.global_grad_norm.item())
            if step == 1:
                history.first = parts_of((*module.global_tensors(), *optimizer.global_tensors()))
        evaluated = module.eval_step(micro_batches(model, 99, config, topology), loss_function)
        history.evaluation = [
            number.item() for number in (evaluated.loss, evaluated.weight, *evaluated.metrics().values())
        ]
        history.final = parts_of((*module.global_tensors(), *optimizer.global_tensors()))
        optimizer.close()
        return history


def build(
    model: Model, config: TopologyConfig, topology: Topology, options: dict[str, Any], rule: UpdateRule | None = None
) -> tuple[ParallelModule, Optimizer]:
    """Return module and optimizer; `rule` is how matrices are updated where not by AdamW."""
    return module_and_optimizer(
        layer_specs(model, topology),
        topology,
        config,
        OptimizerConfig.from_dict(options),
        groups=groups_of(rule),
        seed=SEED,
        usual_weight=model.global_batch * model.sequence,
    )


def train_in(model: Model, layout: dict[str, Any], *, steps: int = 3, **options: Any) -> Outcome:
    """Train in a layout; every rank must have seen the same numbers."""
    ranks = 1
    for axis in ("pipe", "data", "model"):
        ranks *= layout.get(axis, 1)
    if ranks == 1:
        histories = [train(0, 1, model, layout, options, steps)]
    else:
        histories = run_distributed(train, ranks, model, layout, options, steps)
    return outcome_of(histories)


def outcome_of(histories: Sequence[History]) -> Outcome:
    """Return what all ranks of a layout saw, which must be the same, and the tensors they hold together."""
    first = histories[0]
    for other in histories:
        seen = (other.losses, other.norms, other.evaluation)
        expected = (first.losses, first.norms, first.evaluation)
        assert np.array_equal(np.hstack(seen), np.hstack(expected), equal_nan=True), "ranks report different numbers"
    tensors = {name: join([getattr(history, name) for history in histories]) for name in ("initial", "first", "final")}
    return Outcome(losses=first.losses, norms=first.norms, evaluation=first.evaluation, **tensors)


def initial_values(piece: Piece, seed: int = SEED) -> Tensor:
    """Return the whole initial tensor that a piece of a parameter is a part of."""
    assert piece.initializer is not None
    values = part_of_initial_values(
        piece.initializer,
        seed=seed,
        key=piece.key,
        shape=piece.shape,
        offset=(0,) * len(piece.shape),
        part=piece.shape,
    )
    return torch.from_numpy(values)


def train_densely(model: Model, initial: dict[str, Tensor], *, steps: int = 3, clip: float = 1.0) -> Outcome:
    """Train whole float64 weights with torch's AdamW on whole batches, clipping by hand."""
    weights = {key: value.clone().requires_grad_() for key, value in initial.items()}
    vectors = [value for key, value in weights.items() if "norm" in key or key.endswith("bias")]
    matrices = [value for key, value in weights.items() if not ("norm" in key or key.endswith("bias"))]
    adamw = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}], betas=(0.9, 0.95)
    )
    outcome = Outcome([], [], [], dict(initial), {}, {})
    for step in range(1, steps + 1):
        loss = dense_loss(model, weights, step)
        adamw.zero_grad()
        torch.autograd.backward(loss)
        gradients = [value.grad for value in weights.values() if value.grad is not None]
        norm = torch.stack([gradient.square().sum() for gradient in gradients]).sum().sqrt()
        for gradient in gradients:
            gradient.mul_((clip / norm).clamp_max(1.0) if clip else 1.0)
        for group in adamw.param_groups:
            group["lr"] = 1e-2 * min(1.0, step / 2)
        adamw.step()
        outcome.losses.append(loss.item())
        outcome.norms.append(norm.item())
        state = {key: value.detach().clone() for key, value in weights.items()}
        for slot in ("exp_avg", "exp_avg_sq"):
            state |= {f"optimizer.{slot}.{key}": adamw.state[value][slot].clone() for key, value in weights.items()}
        outcome.first = outcome.first or state
        outcome.final = state
    with torch.no_grad():
        outcome.evaluation = [dense_loss(model, weights, 99).item()]
    return outcome
