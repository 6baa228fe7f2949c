"""ParallelModule: the model as the trainer and the user see it, whatever the layout."""

from __future__ import annotations

import contextlib
import itertools
import zlib
from collections.abc import Container, Iterator, Sequence
from typing import Any, Protocol, final, runtime_checkable

import torch
from torch import Tensor, nn

from scaling.core.boxes import GlobalTensor, whole
from scaling.core.data.types import MicroBatch
from scaling.core.nn.parameter import ParameterMeta, meta
from scaling.core.pipeline.actions import Action
from scaling.core.pipeline.build import build_stages
from scaling.core.pipeline.compiled import CompileChoice, compile_choice, compiler_problem
from scaling.core.pipeline.end import Collector, LossEnd
from scaling.core.pipeline.engine import PipelineEngine
from scaling.core.pipeline.layer_spec import LayerSpec, check_ties
from scaling.core.pipeline.loss import LossFunction, MetricNames, StepLoss
from scaling.core.pipeline.lowering import lower
from scaling.core.pipeline.partition import partition
from scaling.core.pipeline.planned import schedule_of
from scaling.core.pipeline.runners import runners_of
from scaling.core.pipeline.schedules import ForwardOnly, Schedule
from scaling.core.pipeline.shortest_pass import shortest_pass
from scaling.core.topology.config import PipePartitionMethod, TopologyConfig
from scaling.core.topology.layout import Axis
from scaling.core.topology.placement import USUAL, Placements
from scaling.core.topology.topology import Topology, first_given


@runtime_checkable
class FollowsBase(Protocol):
    """A module some of whose initial values follow from weights of the base, such as the norms of its rows."""

    def follow_base(self) -> None:
        """Derive these values, in place. Collective: all ranks."""


def partition_of(
    costs: Sequence[float], config: TopologyConfig, schedule: Schedule, *, ranks: int
) -> tuple[range, ...]:
    """Return the layers of each stage of a schedule over `ranks` pipe ranks. Pure: the same on all ranks."""
    stages, overwrite = len(schedule.stages.over(ranks)), config.pipe_partition_overwrite
    if config.pipe_partition_method is PipePartitionMethod.UNIFORM or overwrite is not None:
        return partition(costs, stages, "uniform", overwrite)
    balanced = partition(costs, stages, "balanced")
    if config.pipe_partition_method is PipePartitionMethod.BALANCED:
        return balanced
    return shortest_pass(costs, balanced, schedule, ranks=ranks, micro_batches=config.gradient_accumulation_steps)


def _agreed(choice: CompileChoice, topology: Topology) -> CompileChoice:
    """Return the choice that all ranks can follow. Collective where layers are to be compiled: all ranks."""
    if not choice.on:
        return choice
    problems = topology.agree("compiler", compiler_problem(topology.device), _first_problem)
    return choice if problems is None else CompileChoice(False, f"the compiler does not work: {problems}")


def _first_problem(problems: Sequence[str | None]) -> str | None:
    return next((f"on rank {rank}, {problem}" for rank, problem in enumerate(problems) if problem is not None), None)


@final
class ParallelModule(nn.Module):
    """A model given as a list of layers, cut over the pipe axis; each layer cuts itself over the model axis.

    Construct it on all ranks, with the same arguments. Layer i takes the output of layer i - 1: a tensor, or a tuple,
    list, dict or dataclass of tensors. The first layer takes a micro-batch's inputs; the output of the last goes to the
    loss function.
    """

    def __init__(self, specs: Sequence[LayerSpec], topology: Topology, config: TopologyConfig, *, seed: int) -> None:
        super().__init__()
        check_ties(specs)
        self.topology = topology
        self.micro_batches = config.gradient_accumulation_steps
        self.schedule = schedule_of(config)
        stage_map = self.schedule.stages.over(topology.size(Axis.PIPE))
        self.partition = partition_of(
            [spec.cost for spec in specs], config, self.schedule, ranks=topology.size(Axis.PIPE)
        )
        topology.rng.seed(seed)
        stages = build_stages(specs, self.partition, stage_map, topology=topology, seed=seed)
        self.compiling = _agreed(compile_choice(config, topology.device), topology)
        """Whether layers are compiled, and why: the same on all ranks."""
        runners = runners_of(config, topology, compile_layers=self.compiling.on)
        self._uncompiled = runners_of(config, topology, compile_layers=False)
        for stage in stages.values():
            stage.run_with(runners)
        self.stages = nn.ModuleDict({str(number): stage for number, stage in stages.items()})
        self._engine = PipelineEngine(stages, stage_map, topology)
        self._metric_names: dict[str, MetricNames] = {}
        self._one = torch.ones((), dtype=torch.float64, device=topology.device)
        self._actions = self._lower(self.schedule, self.micro_batches)
        self._forward_actions = self._lower(ForwardOnly(self.schedule.stages), self.micro_batches)

    @contextlib.contextmanager
    def uncompiled(self) -> Iterator[None]:
        """Run layers uncompiled within the context, for code that looks at the modules inside them."""
        with contextlib.ExitStack() as stages:
            for stage in self._engine.stages.values() if self.compiling.on else ():
                stages.enter_context(stage.running_with(self._uncompiled))
            yield

    @property
    def engine(self) -> PipelineEngine:
        """Return the executor, for profiling."""
        return self._engine

    @property
    def first(self) -> bool:
        """Whether this rank runs the first layer."""
        return "0" in self.stages

    @property
    def last(self) -> bool:
        """Whether this rank runs the last layer."""
        return str(len(self.partition) - 1) in self.stages

    @property
    def num_layers(self) -> int:
        """Return the number of layers of the whole model."""
        return self.partition[-1].stop

    def share(self, value: Tensor | None, layer: int, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Return, on all pipe ranks, the `value` of the rank that has `layer`; all ranks know its shape and type.

        The `value` of other ranks is ignored. Collective over the pipe axis: a broadcast.
        """
        stages = self._engine.stage_map
        source = stages.rank_of(next(stage for stage, layers in enumerate(self.partition) if layer in layers))
        if self.topology.index(Axis.PIPE) != source:
            value = torch.empty(tuple(shape), dtype=dtype, device=self.topology.device)
        assert value is not None
        return self.topology.share(value.contiguous(), Axis.PIPE, source=source)

    def train_step(
        self, batches: Iterator[MicroBatch], loss_function: LossFunction, *, gradient_scale: Tensor | None = None
    ) -> StepLoss:
        """Run forward and backward of one global batch; gradients accumulate in the parameters.

        `batches` yields this data rank's micro-batches on ranks that run the first or the last layer; other ranks never
        read it. Gradients are those of the *sum* of all losses times `gradient_scale`; the optimizer divides by the
        weight of the whole batch. Collective: all ranks.
        """
        self._become(training=True)
        scale = self._one if gradient_scale is None else gradient_scale
        end = LossEnd(loss_function, scale, self.topology)
        self._engine.run(self._actions, batches, end)
        return self._accepted(end.total, "train")

    @torch.no_grad()
    def eval_step(
        self, batches: Iterator[MicroBatch], loss_function: LossFunction, *, dropout: bool = False
    ) -> StepLoss:
        """Run the forward pass of one global batch and return its loss; `dropout`: with dropout, as in training.

        Collective: all ranks.
        """
        self._become(training=dropout)
        end = LossEnd(loss_function, self._one, self.topology)
        self._engine.run(self._forward_actions, batches, end)
        return self._accepted(end.total, "eval")

    @torch.no_grad()
    def forward_step(self, batches: Iterator[MicroBatch]) -> list[Any]:
        """Run the forward pass of one global batch and return the outputs of the last layer, without a loss.

        On ranks that run the last layer: the output for each of this data rank's micro-batches, in their order, as the
        layer returns it (a part of it, if the layer is cut over the model axis). Elsewhere: an empty list. `batches` as
        for `train_step`; targets are ignored. Shapes may differ between calls, but not within one. Collective: all
        ranks of the pipe and model axes.
        """
        self._become(training=False)
        end = Collector()
        self._engine.forget_shapes()
        self._engine.run(self._forward_actions, batches, end)
        self._engine.forget_shapes()  # training and evaluation have their own shapes
        return end.outputs

    def zero_grad(self, set_to_none: bool = False) -> None:
        """Clear the gradients in place: they lie in the optimizer's buffers, which would miss new ones elsewhere."""
        super().zero_grad(set_to_none=False)

    def parameters_with_meta(self) -> Iterator[tuple[nn.Parameter, ParameterMeta]]:
        """Yield this rank's parameters, each once, in the order of the layers, with their descriptions."""
        for parameter in self.parameters():
            yield parameter, meta(parameter)

    def uses(self) -> dict[nn.Parameter, int]:
        """Return how many of this rank's stages hold each parameter: how often its gradient comes per micro-batch."""
        counts: dict[nn.Parameter, int] = {}
        for parameter in itertools.chain.from_iterable(stage.parameters() for stage in self.stages.values()):
            counts[parameter] = counts.get(parameter, 0) + 1
        return counts

    def layers(self) -> Iterator[tuple[int, nn.Module]]:
        """Yield this rank's layers, each with its place in the model."""
        for stage in self.stages.values():
            # ModuleDict forgets that it holds stages.
            yield from zip(stage.indices, stage.layers, strict=True)  # type: ignore[arg-type]

    @torch.no_grad()
    def follow_base(self) -> None:
        """Let modules whose initial values follow from weights of the base derive them from the present weights.

        Collective: all ranks.
        """
        for module in self.stages.modules():
            if isinstance(module, FollowsBase):
                module.follow_base()

    def global_tensors(self, parameters: Container[nn.Parameter] | None = None) -> Iterator[GlobalTensor]:
        """Yield this rank's parts of all weights, or of `parameters`, and of persistent buffers, as views."""
        for parameter, description in self.parameters_with_meta():
            if parameters is not None and parameter not in parameters:
                continue
            for piece in description.pieces:
                local = piece.local(parameter.detach())
                parts = [(piece.box, local)] if local.numel() else []
                owned = self._owns(piece.key, description.placements)
                yield GlobalTensor(piece.key, piece.shape, parts, owned, piece.former)
        for index, layer in self.layers():
            saved = layer.state_dict(keep_vars=True)
            for name, buffer in layer.named_buffers():
                if name in saved:
                    key = f"layers.{index}.{name}"
                    parts = [(whole(buffer.shape), buffer)]
                    yield GlobalTensor(key, tuple(buffer.shape), parts, self._owns(key, USUAL))

    def _owns(self, key: str, placements: Placements) -> bool:
        """Return whether this rank writes a tensor: one of the ranks that hold it does, chosen by its name."""
        topology = self.topology
        return placements.stands_for(topology.layout, topology.coordinate, spread=zlib.crc32(key.encode()))

    def _become(self, *, training: bool) -> None:
        """Switch all modules if the mode changes: going through the tree costs more than a small layer's forward."""
        if self.training != training:
            self.train(training)

    def _lower(self, schedule: Schedule, micro_batches: int) -> tuple[Action, ...]:
        return lower(schedule, self.topology.index(Axis.PIPE), self.topology.size(Axis.PIPE), micro_batches)

    def _accepted(self, loss: StepLoss, mode: str) -> StepLoss:
        """Reduce the loss over all ranks, let the step count, and return the loss over the global batch."""
        loss.reduce(self._metrics_of(loss, mode))
        self._engine.accept()
        return loss

    def _metrics_of(self, loss: StepLoss, mode: str) -> MetricNames:
        """Return the names of the metrics the last stage reports; agreed over the store in the first step."""
        if mode not in self._metric_names:
            mine = [list(loss.names.sums), list(loss.names.measures)] if self.last else None
            names: list[list[str]] | None = self.topology.agree(f"metric names {mode}", mine, first_given)
            self._metric_names[mode] = MetricNames(*map(tuple, names or ([], [])))
        return self._metric_names[mode]
