"""Measure training steps of a configuration in a layout, against a bare PyTorch loop of the same model.

    python3 benchmarks/train_step.py [KEY=VALUE ...] [--config FILE] [--steps 5] [--rounds 7] [--budget 20]
                                     [--no-bare] [--before DIR] [--json FILE]

All sides live at once, each in processes of its own, and take turns: a round is some steps of each, so that a machine
whose speed drifts treats them alike. Reported are medians over the rounds, and the median of the ratios round by round:
on a shared machine only the ratio means anything. The bare side takes part where the layout is data parallel only
(DistributedDataParallel for several processes). `--before` is the folder of another checkout of this repository, such
as a worktree of the commit before, whose steps are another side.

One more side runs the matrix products of a step and nothing else (`roofline.py`): `fraction_of_roofline` is its time
divided by that of a step. After the rounds, `--budget` further steps are taken apart (`budget.py`); 0: none.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from bare_loop import BareModel
from budget import budget as measured_budget
from budget import summary
from reporting import begin, parser, publish
from roofline import only_products, products_of
from sides import HERE, Side, configured
from torch import Tensor

from scaling.core import Axis, BaseDataset, LaunchContext, Learner, Loading, MicroBatch, Topology
from scaling.core.trainer.hardware import peak_flops
from scaling.transformer import TransformerConfig
from scaling.transformer.config.model_plan import plan_of
from scaling.transformer.flops import flops_per_token
from scaling.transformer.io import TextInputs, TextTargets
from scaling.transformer.plan.parts import FeedForwardPlan
from scaling.transformer.recipe import recipe_of

DEFAULT: dict[str, Any] = {
    "topology": {"model_parallel_size": 1, "pipe_parallel_size": 1, "data_parallel_size": 1, "global_batch_size": 8,
                 "gradient_accumulation_steps": 1},
    "optimizer": {"zero": True},
    "trainer": {"seed": 1},
    "transformer_architecture": {
        "vocab_size": 8192, "hidden_size": 256, "num_layers": 4, "num_attention_heads": 4, "sequence_length": 256,
        "mlp_type": "swiglu", "mlp_factor": 2.75, "mlp_bias": False, "attention_bias": False, "norm_type": "rms",
        "weight_tying": False, "reset_attention_mask": False, "precision": "float32",
    },
}  # fmt: skip


def tokens(config: TransformerConfig, rows: int, device: torch.device) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    length = config.transformer_architecture.sequence_length
    ids = torch.randint(config.transformer_architecture.vocab_size, (rows, length + 1), generator=generator)
    return ids[:, :-1].contiguous().to(device), ids[:, 1:].contiguous().to(device)


class OneMicroBatch(BaseDataset[Any]):
    """Data that cost nothing to read: the same micro-batch again and again, on the device already."""

    def __init__(self, config: TransformerConfig, device: torch.device) -> None:
        rows, length = config.topology.micro_batch_size, config.transformer_architecture.sequence_length
        ids, targets = tokens(config, rows, device)
        positions = torch.arange(length, device=device).expand(rows, length)
        self.micro_batch = MicroBatch(
            TextInputs(ids, positions, None, torch.arange(rows, device=device)),
            TextTargets(targets, torch.ones(rows, length, device=device)),
        )

    def __len__(self) -> int:
        return 10**9  # an epoch that no run reaches the end of: another one has another order, which is made anew

    def __getitem__(self, index: int) -> None:
        return None

    def collate(self, samples: Sequence[Any], positions: Sequence[int], valid: Sequence[bool]) -> MicroBatch:
        return self.micro_batch

    def fingerprint(self) -> str:
        return "one micro-batch"


def learner_of(config: TransformerConfig, launch: LaunchContext) -> tuple[Learner, torch.device]:
    """Return one rank's part of the training that is measured."""
    topology = Topology.connect(config.topology, launch)
    recipe = recipe_of(config, OneMicroBatch(config, topology.device))
    return Learner(recipe, config.topology, topology, loading=Loading(pin_memory=False)), topology.device


def scaling_side(config: TransformerConfig, launch: LaunchContext) -> tuple[Callable[[], float], torch.device]:
    """Return a function that runs one step of the library and returns its loss.

    Name and signature stay: `--before` of a later checkout calls it in this one.
    """
    learner, device = learner_of(config, launch)
    steps = itertools.count(1)

    def step() -> float:
        loss, _ = learner.step(next(steps))
        return float(loss.loss)

    return step, device


def bare_side(config: TransformerConfig, launch: LaunchContext) -> tuple[Callable[[], float], torch.device]:
    """Return a function that runs one step of the bare loop and returns its loss.

    Half precision is PyTorch's autocast with float32 parameters: the library, too, updates float32 master weights.
    """
    architecture, batch = config.transformer_architecture, config.topology
    cuda = torch.cuda.is_available() and batch.device.value != "cpu"
    device = torch.device("cuda", launch.local_rank) if cuda else torch.device("cpu")
    torch.manual_seed(1)
    bare = BareModel(
        vocabulary=architecture.vocab_size,
        hidden=architecture.hidden_size,
        layers=architecture.num_layers,
        heads=architecture.num_attention_heads,
        intermediate=plan_of(architecture).parts(FeedForwardPlan)[0].width,
        sequence=architecture.sequence_length,
    ).to(device)
    half = architecture.precision.dtype != torch.float32
    model: torch.nn.Module = bare
    if launch.world_size > 1:
        torch.distributed.init_process_group(
            "nccl" if cuda else "gloo",
            init_method=f"tcp://127.0.0.1:{launch.master_port}",
            rank=launch.rank,
            world_size=launch.world_size,
        )
        model = torch.nn.parallel.DistributedDataParallel(bare, gradient_as_bucket_view=True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4, betas=(0.9, 0.95), fused=True)
    ids, targets = tokens(config, batch.micro_batch_size, device)
    parts = batch.gradient_accumulation_steps

    def step() -> float:
        for _ in range(parts):
            with torch.autocast(device.type, architecture.precision.dtype, enabled=half):
                loss = model(ids, targets)
            (loss / parts).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return float(loss.detach())

    return step, device


def products_side(config: TransformerConfig, launch: LaunchContext) -> tuple[Callable[[], float], torch.device]:
    """Return a function that runs the matrix products of one step at their shapes, and nothing else: the roofline."""
    cuda = torch.cuda.is_available() and config.topology.device.value != "cpu"
    device = torch.device("cuda", launch.local_rank) if cuda else torch.device("cpu")
    architecture = config.transformer_architecture
    products = products_of(plan_of(architecture), config.topology, causal=architecture.causal)
    return only_products(products, architecture.precision.dtype, device), device


def utilisation(config: TransformerConfig, tokens_per_second: float) -> dict[str, float]:
    """Return the share of the GPUs' peak rate that a training uses; nothing on a CPU or a GPU that is not known.

    Attention counted in full, which is the convention of the field, and without what a causal mask hides.
    """
    if not torch.cuda.is_available() or (peak := peak_flops(torch.device("cuda"))) is None:
        return {}
    whole = plan_of(config.transformer_architecture).multiply_adds
    rate = tokens_per_second / config.topology.world_size / peak
    full = flops_per_token(config.transformer_architecture)
    return {"mfu": full * rate, "mfu_causal_attention": (full - 6 * whole.scores / 2) * rate}


def main() -> None:
    arguments = parser(__doc__, steps=5, rounds=7, budget=20)
    arguments.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    arguments.add_argument("--config", type=Path)
    arguments.add_argument("--no-bare", action="store_true")
    arguments.add_argument("--before", type=Path, metavar="DIR", help="another checkout to compare this one with")
    options = arguments.parse_args()
    config = (
        TransformerConfig.from_yaml(options.config, options.overrides)
        if options.config
        else TransformerConfig.from_dict(DEFAULT, options.overrides)
    )
    topology = config.topology
    data_only = topology.world_size == topology.data_parallel_size

    def side(name: str, checkout: Path, builder: str) -> Side:
        work = configured(
            checkout,
            builder,
            config=options.config and str(options.config),
            defaults=DEFAULT,
            overrides=options.overrides,
            world_size=topology.world_size,
        )
        return Side(name, work)

    sides = [side("scaling", HERE, "scaling_side"), side("products", HERE, "products_side")]
    if options.before is not None:
        sides.append(side("before", options.before, "scaling_side"))
    if data_only and not options.no_bare:
        sides.append(side("bare", HERE, "bare_side"))
    seconds: dict[str, list[float]] = {side.name: [] for side in sides}
    for number in range(options.rounds):
        for side_in_turn in sides if number % 2 == 0 else reversed(sides):
            seconds[side_in_turn.name].append(side_in_turn.run(options.steps))
    results = {side.name: side.finish() for side in sides}

    tokens_per_step = topology.global_batch_size * config.transformer_architecture.sequence_length
    report = begin() | {
        "layout": {axis.value: topology.layout.size(axis) for axis in Axis},
        "seconds_of_the_products_of_a_step": statistics.median(products := seconds.pop("products")),
    }
    for name in seconds:
        median = statistics.median(seconds[name])
        report[name] = {
            "seconds_per_step": median,
            "tokens_per_second": tokens_per_step / median,
            "fraction_of_roofline": statistics.median(
                least / step for least, step in zip(products, seconds[name], strict=True)
            ),
            **utilisation(config, tokens_per_step / median),
            "peak_memory_bytes_per_process": max(result.peak_memory_bytes for result in results[name]),
            "loss": results[name][0].loss,
        }
    for name in [name for name in seconds if name != "scaling"]:
        ratios = [other / own for own, other in zip(seconds["scaling"], seconds[name], strict=True)]
        memory = [report[of]["peak_memory_bytes_per_process"] for of in ("scaling", name)]
        report[f"speed_relative_to_{name}"] = statistics.median(ratios)
        report[f"speed_relative_to_{name}_by_round"] = ratios
        report[f"memory_relative_to_{name}"] = memory[0] / memory[1]
    if options.budget:
        path = options.config and str(options.config)
        ranks = measured_budget(path, DEFAULT, options.overrides, world=topology.world_size, steps=options.budget)
        report["budget"] = summary(ranks)
    publish(report, options.json)


if __name__ == "__main__":
    main()
