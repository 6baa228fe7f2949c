"""TopologyConfig: how many processes there are on each axis, and how a global batch is cut."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from enum import Enum
from itertools import pairwise
from math import prod
from types import MappingProxyType
from typing import Annotated, Any, ClassVar

from pydantic import Field
from typing_extensions import Self

from scaling.core.config.base import BaseConfig
from scaling.core.config.fields import Derived, OnResume, SetByLauncher
from scaling.core.errors import ConfigError, Problem
from scaling.core.topology.layout import Layout


class Device(str, Enum):
    """The device that a process computes on."""

    AUTO = "auto"
    CPU = "cpu"
    CUDA = "cuda"


class PipePartitionMethod(str, Enum):
    """The way in which layers are assigned to pipeline stages."""

    UNIFORM = "uniform"
    BALANCED = "balanced"
    SIMULATED = "simulated"


class PipeSchedule(str, Enum):
    """The order in which a pipeline rank processes its micro-batches."""

    GPIPE = "gpipe"
    ONE_F_ONE_B = "1f1b"
    INTERLEAVED = "interleaved_1f1b"


class ActivationCheckpointingType(str, Enum):
    """The activations that are recomputed in the backward pass instead of being kept."""

    DISABLED = "disabled"
    SELECTIVE = "selective"
    EVERY_LAYER = "every_layer"
    EVERY_PIPE_STAGE = "every_pipe_stage"


class Compile(str, Enum):
    """Whether layers are compiled."""

    AUTO = "auto"
    ON = "on"
    OFF = "off"


DATA_PARALLEL_SIZE = "data_parallel_size"
PARALLEL_SIZES = ("model_parallel_size", "pipe_parallel_size", DATA_PARALLEL_SIZE)
BATCH_SIZES = ("micro_batch_size", "gradient_accumulation_steps")
OMITTED_IN_A_BATCH = ("gradient_accumulation_steps", "micro_batch_size")
"""The batch numbers to leave out first, so that the global batch size stays the same."""
DEFAULT_BATCH = MappingProxyType({"micro_batch_size": 2, "gradient_accumulation_steps": 1})


class TopologyConfig(BaseConfig):
    """Processes on each axis, and samples in each step.

    Two products hold: model_parallel_size * pipe_parallel_size * data_parallel_size = world_size, and
    micro_batch_size * gradient_accumulation_steps * data_parallel_size = global_batch_size. Sizes that are not given
    are 1 without a world_size; with one, give two of them. Give two of the three batch numbers, or none for
    micro-batches of 2.
    """

    parallel_sizes: ClassVar[tuple[str, ...]] = PARALLEL_SIZES
    """The fields that hold the size of an axis and are named after it. Beyond the first three, an axis has 1 rank
    unless given."""
    on_resume = OnResume.RUNTIME

    model_parallel_size: Annotated[int, Derived(null_in_template=False)] = Field(default=1, ge=1)
    """Number of processes that share every layer (tensor parallelism)."""
    pipe_parallel_size: Annotated[int, Derived(null_in_template=False)] = Field(default=1, ge=1)
    """Number of pipeline ranks that the layers are divided among."""
    data_parallel_size: Annotated[int, Derived(null_in_template=False)] = Field(default=1, ge=1)
    """Number of copies of the model that each train on their part of the batch."""
    world_size: Annotated[int, Derived()] = Field(default=1, ge=1)
    """Number of processes, one for each GPU where there are GPUs: the product of the three sizes."""
    micro_batch_size: Annotated[int, Derived(null_in_template=False)] = Field(default=2, ge=1)
    """Samples in one forward pass of one data-parallel rank."""
    gradient_accumulation_steps: Annotated[int, Derived(null_in_template=False)] = Field(default=1, ge=1)
    """Micro-batches each data-parallel rank works through in one optimizer step."""
    global_batch_size: Annotated[int, Derived(), OnResume.SCHEDULE] = Field(default=2, ge=1)
    """Samples in one optimizer step, over all ranks and micro-batches."""
    device: Device = Device.AUTO
    """auto: GPUs where this machine has them, else CPU."""
    pipe_partition_method: PipePartitionMethod = PipePartitionMethod.UNIFORM
    """uniform: the same number of layers for each stage; balanced: about the same cost, for a transformer the
    multiply-adds of its matrix products; simulated: starts from balanced, and moves boundaries as long as that shortens
    a simulated pass."""
    pipe_partition_overwrite: list[int] | None = None
    """Boundaries of the stages, used instead of a method: [0, ..., number of layers], one more than there are stages.
    null: the method decides."""
    pipe_schedule: PipeSchedule = PipeSchedule.ONE_F_ONE_B
    """gpipe: all forwards, then all backwards; 1f1b: few live activations; interleaved_1f1b: several stages on each
    rank, so less idle time and more communication."""
    pipe_chunks_per_rank: int = Field(default=1, ge=1)
    """Stages on each pipeline rank: at least 2 with interleaved_1f1b, else 1."""
    activation_checkpointing_type: ActivationCheckpointingType = ActivationCheckpointingType.DISABLED
    """Recompute activations in the backward pass to save memory: disabled; selective: only cheap operations (norms,
    activation functions, dropout); every_layer; every_pipe_stage."""
    compile: Compile = Compile.AUTO
    """Compile each layer's training step with PyTorch's compiler, which fuses the operations between matrix products.
    The first step takes up to a minute longer. auto: on GPUs; on: on a CPU too; off. With selective checkpointing,
    which works on single operations, nothing is compiled."""
    sequence_parallel: bool = False
    """Split the activations between tensor-parallel layers along the sequence. No effect with model_parallel_size 1."""
    shared_memory: bool = True
    """On a CPU, processes of one machine exchange tensors through shared memory (Linux). false: over the machine's
    loopback network. The results are the same."""
    process_group_timeout_seconds: float = Field(default=1200.0, gt=0, le=1e9)
    """Seconds a process waits for the others in a collective before it gives up."""
    global_rank: Annotated[int | None, SetByLauncher()] = Field(default=None, ge=0)
    """Number of this process among all; set by the launcher, never in a file."""
    local_slot: Annotated[int | None, SetByLauncher()] = Field(default=None, ge=0)
    """Number of this process among those of its machine; set by the launcher, never in a file."""

    @property
    def layout(self) -> Layout:
        """Return the sizes of all axes."""
        return Layout(**{name.removesuffix("_parallel_size"): getattr(self, name) for name in self.parallel_sizes})

    @property
    def pipe_stages(self) -> int:
        """Return the number of stages the layers are cut into."""
        return self.pipe_parallel_size * self.pipe_chunks_per_rank

    @classmethod
    def prepare(cls, given: dict[str, Any]) -> Iterator[Problem]:
        """Complete the two products from the numbers that were given."""
        for name in cls.parallel_sizes[len(PARALLEL_SIZES) :]:  # a configuration need not name an axis that it lacks
            given.setdefault(name, 1)
        sizes = _numbers(given, (*cls.parallel_sizes, "world_size"))
        if "world_size" not in sizes:
            sizes = {**dict.fromkeys(PARALLEL_SIZES, 1), **sizes}
        batch = _numbers(given, (*BATCH_SIZES, "global_batch_size")) or DEFAULT_BATCH
        if min(*sizes.values(), *batch.values()) < 1:
            return  # each such number is reported as a field
        completed = complete_product(cls.parallel_sizes, "world_size", sizes)
        if isinstance(completed, dict):
            given.update(completed)
            batch = {**batch, DATA_PARALLEL_SIZE: completed[DATA_PARALLEL_SIZE]}
            factors = (*BATCH_SIZES, DATA_PARALLEL_SIZE)
            completed = complete_product(factors, "global_batch_size", batch, rather_omit=OMITTED_IN_A_BATCH)
        if isinstance(completed, dict):
            given.update(completed)
        else:
            yield completed

    def problems(self) -> Iterator[Problem]:
        """Check the schedule and explicit stage boundaries."""
        ranks, chunks, steps = self.pipe_parallel_size, self.pipe_chunks_per_rank, self.gradient_accumulation_steps
        interleaved = self.pipe_schedule is PipeSchedule.INTERLEAVED
        if interleaved and chunks < 2:
            yield Problem(
                "pipe_chunks_per_rank",
                f"is {chunks}, but interleaved_1f1b needs at least 2 stages on each rank; set it to 2, or "
                "pipe_schedule to 1f1b",
            )
        if not interleaved and chunks > 1:
            yield Problem(
                "pipe_chunks_per_rank",
                f"is {chunks}, but {self.pipe_schedule.value} has 1 stage on each rank; set it to 1, or "
                "pipe_schedule to interleaved_1f1b",
            )
        if interleaved and steps % ranks:
            yield Problem(
                "gradient_accumulation_steps",
                f"is {steps}, but must be a multiple of pipe_parallel_size ({ranks}) with interleaved_1f1b; the "
                f"nearest is {_nearest_multiple(steps, ranks)}",
            )
        bounds = self.pipe_partition_overwrite
        if bounds is None:
            return
        if len(bounds) != self.pipe_stages + 1:
            yield Problem(
                "pipe_partition_overwrite",
                f"has {len(bounds)} boundaries, but must have {self.pipe_stages + 1}: one more than there are stages "
                f"(pipe_parallel_size {ranks} * pipe_chunks_per_rank {chunks})",
            )
        if bounds[:1] != [0] or any(after <= before for before, after in pairwise(bounds)):
            yield Problem(
                "pipe_partition_overwrite", f"is {bounds}, but must start with 0 and increase: no stage may be empty"
            )

    def notes(self) -> Iterator[Problem]:
        """Yield settings that only a launcher may set. For a configuration that comes from a file."""
        for name in ("global_rank", "local_slot"):
            if getattr(self, name) is not None:
                yield Problem(name, f"is {getattr(self, name)}, but each process has its own, which the launcher sets")

    def with_launch(self, rank: int, world_size: int, local_slot: int) -> Self:
        """Return a copy for the process `rank` of `world_size`, the `local_slot`-th of its machine.

        Raises `ConfigError` if the launcher started another number of processes than the topology has.
        """
        if world_size != self.world_size:
            sizes = {name: getattr(self, name) for name in self.parallel_sizes}
            alone = world_size == 1  # mostly because no launcher was used
            found = "this process is alone" if alone else f"the launcher started {world_size} processes"
            start = f"start {self.world_size}{' with torchrun or srun' if alone else ''}"
            raise ConfigError(
                Problem(
                    "topology.world_size", f"{found}, but {_product(sizes)}; {start}, or {self._fitting(world_size)}"
                )
            )
        return self.model_copy(update={"global_rank": rank, "local_slot": local_slot})

    def _fitting(self, world_size: int) -> str:
        others = self.world_size // self.data_parallel_size
        if world_size % others == 0:
            return f"set topology.data_parallel_size to {world_size // others}"
        return f"set sizes whose product is {world_size}"


def complete_product(
    factors: Sequence[str], whole: str, given: Mapping[str, int], *, rather_omit: Sequence[str] = ()
) -> dict[str, int] | Problem:
    """Return all numbers of `factors[0] * factors[1] * ... = whole`, of which one may be missing, or the problem.

    Where all are given and do not fit, the message advises leaving out one of `rather_omit`, or else `whole`.
    """
    missing = [name for name in (*factors, whole) if name not in given]
    if len(missing) > 1:
        wanted = " or ".join(missing) if len(missing) == 2 else f"{len(missing) - 1} of {', '.join(missing)}"
        known = " and ".join(f"{name} {value}" for name, value in given.items())
        return Problem(missing[0], f"does not follow from {known} alone; give {wanted} too")
    known_factors = {name: given[name] for name in factors if name in given}
    product = prod(known_factors.values())
    if missing == [whole]:
        return {**known_factors, whole: product}
    if missing and given[whole] % product:
        return Problem(
            missing[0],
            f"does not follow: {whole} ({given[whole]}) is not divisible by {_product(known_factors)}; the nearest "
            f"{whole} that is: {_nearest_multiple(given[whole], product)}",
        )
    if not missing and given[whole] != product:
        omitted = next((name for name in rather_omit if given[whole] % (product // given[name]) == 0), whole)
        return Problem(
            whole,
            f"is {given[whole]}, but {_product(known_factors)}; make them equal, or leave out one of the numbers, for "
            f"example topology.{omitted}=null",
        )
    return {**given, **{name: given[whole] // product for name in missing}}


def _numbers(given: Mapping[str, Any], names: Sequence[str]) -> Mapping[str, int]:
    return {name: int(given[name]) for name in names if name in given}


def _product(factors: Mapping[str, int]) -> str:
    return f"{' * '.join(f'{name} {value}' for name, value in factors.items())} = {prod(factors.values())}"


def _nearest_multiple(value: int, of: int) -> int:
    return max(of, (value + of // 2) // of * of)
