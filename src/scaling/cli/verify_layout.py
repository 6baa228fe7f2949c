"""`scaling verify-layout`: prove that two layouts are the same training run, or report where they part."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator, Sequence
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from scaling.core import (
    AdamWConfig,
    BaseConfig,
    ConfigError,
    ExitStatus,
    Recipe,
    TopologyConfig,
    verify_layout,
)
from scaling.transformer import TransformerConfig, layer_specs, load_datasets, prepare_data
from scaling.transformer.data.source import missing_files
from scaling.transformer.recipe import LayerFunction, recipe_of
from scaling.transformer.verify.comparable import comparable, tolerance_of
from scaling.transformer.verify.shrink import PROCESSES, differences, shrunk
from scaling.transformer.verify.synthetic import synthetic_text

_VOCABULARY = 1001  # in place of the tokenizer's; not divisible by any usual number of ranks
_EVALUATION_SAMPLES = 5


class Precision(str, Enum):
    """The types in which layouts can be compared."""

    FLOAT64 = "float64"
    FLOAT32 = "float32"


def verify(
    config: Annotated[Path, typer.Argument(metavar="CONFIG", help="The configuration, YAML or JSON.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="KEY=VALUE", help="Changes, such as topology.model_parallel_size=2.", show_default=False
        ),
    ] = None,
    against: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=VALUE ...",
            help="The topology of the reference, such as topology.data_parallel_size=2. Default: one process.",
            show_default=False,
        ),
    ] = None,
    steps: Annotated[int, typer.Option(min=1, metavar="N", help="Optimizer steps to compare.")] = 3,
    processes: Annotated[
        int, typer.Option(min=1, metavar="N", help="Shrink the layout to at most this many processes.")
    ] = PROCESSES,
    full_size: Annotated[
        bool, typer.Option("--full-size", help="Keep all sizes, and train on the configured data where they exist.")
    ] = False,
    precision: Annotated[
        Precision,
        typer.Option(
            metavar="TYPE",
            help="float64, in which rounding hides nothing, or float32, for layers that do not support float64.",
        ),
    ] = Precision.FLOAT64,
    layers: Annotated[
        str | None,
        typer.Option(
            metavar="MODULE:FUNCTION",
            help="A function that returns your own layers; it is called like scaling.transformer.layer_specs.",
            show_default=False,
        ),
    ] = None,
    timeout: Annotated[float, typer.Option(metavar="SECONDS", help="Longest time that a step may take.")] = 300.0,
) -> None:
    """Train in two layouts at once, on this machine's CPU, and compare weights, losses and gradients after each step.

    The model and its layout are shrunk, but keep everything that a layout can break.
    The data are synthetic.

    Exit status: 0 the layouts are the same run, 1 they part, 2 the
    configuration is wrong.
    """
    exact = [
        f"transformer_architecture.precision={precision.value}",
        "transformer_architecture.masked_softmax.kernel=torch",
        "topology.device=cpu",
    ]
    wanted = comparable(TransformerConfig.from_yaml(config, [*(overrides or ()), *exact]))
    _check(wanted)
    function = layer_specs if layers is None else _function(layers)
    sizes = reference_of(against or ())
    _require_fit(wanted, sizes)
    data_sets = [*(wanted.data.data_prefixes or ()), *(wanted.data.validation_data_prefixes or ())]
    real_data = full_size and bool(wanted.data.data_prefixes) and not any(map(missing_files, data_sets))
    used = _used(wanted, sizes, processes, full_size=full_size, real_data=real_data)
    reference = _require_fit(used, sizes)
    recipe = _recipe(used, function, real_data=real_data)
    for line in _introduction(wanted, used, reference, real_data=real_data):
        typer.echo(line)
    report = verify_layout(
        recipe,
        used.topology,
        reference,
        steps=steps,
        precision=precision.value,
        tolerance=tolerance_of(used, precision.value),
        timeout=timeout,
        progress=lambda message: typer.echo(f"  {message}", err=True),
    )
    typer.echo(str(report))
    raise typer.Exit(ExitStatus.DONE if report.agrees else ExitStatus.FAILURE)


class _Reference(BaseConfig):
    """The settings allowed in `--against`."""

    topology: TopologyConfig


def reference_of(against: Sequence[str]) -> TopologyConfig:
    """Return the topology of the reference: one process, with the changes in `against`. Its batch is a placeholder."""
    strange = [setting for setting in against if not setting.startswith("topology.")]
    if strange:
        raise ConfigError(
            f"--against {strange[0]}: layouts differ in their topology alone; give settings such as "
            "topology.data_parallel_size=2, and others before --against"
        )
    one = {"data_parallel_size": 1, "pipe_parallel_size": 1, "model_parallel_size": 1}
    return _Reference.from_dict({"topology": {**one, "device": "cpu"}}, against, quiet=True).topology


def describe(layout: TopologyConfig) -> str:
    """Return a layout in a few words."""
    extras = [
        *(["sequence parallel"] if layout.sequence_parallel else []),
        *([layout.pipe_schedule.value] if layout.pipe_parallel_size > 1 else []),
    ]
    count = f"{layout.world_size} process{'es' if layout.world_size > 1 else ''}"
    sizes = f"pipe {layout.pipe_parallel_size} x data {layout.data_parallel_size} x model {layout.model_parallel_size}"
    return ", ".join([f"{sizes} ({count})", *extras])


def _check(config: TransformerConfig) -> None:
    architecture = config.transformer_architecture
    rates = ("dropout_embedding", "dropout_attention_probs", "dropout_after_attention", "dropout_after_mlp")
    if architecture.dropout_stream.value == "per_rank" and any(getattr(architecture, rate) for rate in rates):
        raise ConfigError(
            "transformer_architecture.dropout_stream: is per_rank, which gives each layout other masks on purpose; "
            "verify with transformer_architecture.dropout_stream=layout_invariant"
        )


def _function(name: str) -> LayerFunction:
    module, _, attribute = name.partition(":")
    sys.path.insert(0, str(Path.cwd()))  # as `python -m` does
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"--layers {name}: {error}; give module:function, importable from here") from error
    function: LayerFunction = found
    return function


def _used(
    config: TransformerConfig, reference: TopologyConfig, processes: int, *, full_size: bool, real_data: bool
) -> TransformerConfig:
    """Return the configuration that is trained."""
    if real_data:
        return prepare_data(config)
    if not config.transformer_architecture.vocab_size:
        architecture = config.transformer_architecture.model_copy(update={"vocab_size": _VOCABULARY})
        config = config.model_copy(update={"transformer_architecture": architecture})
    return config if full_size else shrunk(config, also=reference, processes=processes)


def _recipe(config: TransformerConfig, function: LayerFunction, *, real_data: bool) -> Recipe:
    if real_data:
        return recipe_of(config, *load_datasets(config), layers=function)
    held_out = synthetic_text(config, _EVALUATION_SAMPLES, seed=1)
    return recipe_of(config, synthetic_text(config), held_out, layers=function)


def _require_fit(config: TransformerConfig, sizes: TopologyConfig) -> TopologyConfig:
    """Return the reference with the configuration's global batch; `ConfigError` if that or the model does not fit."""
    reference = _with_batch(sizes, config.topology)
    TransformerConfig.from_dict(config.as_dict() | {"topology": reference.as_dict()}, quiet=True)
    return reference


def _with_batch(sizes: TopologyConfig, layout: TopologyConfig) -> TopologyConfig:
    """Return the reference with the layout's global batch: as few micro-batches as its schedule allows."""
    values = sizes.as_dict() | {"global_batch_size": layout.global_batch_size}
    values["gradient_accumulation_steps"] = sizes.pipe_parallel_size if sizes.pipe_chunks_per_rank > 1 else 1
    del values["micro_batch_size"]
    return TopologyConfig.from_dict(values, quiet=True)


def _introduction(
    wanted: TransformerConfig, used: TransformerConfig, reference: TopologyConfig, *, real_data: bool
) -> Iterator[str]:
    precision = used.transformer_architecture.precision.value
    yield f"layout     {describe(used.topology)}"
    yield f"reference  {describe(reference)}"
    if describe(used.topology) == describe(reference):
        yield "note       these are the same; name another layout, for example topology.model_parallel_size=2"
    changed = list(differences(wanted, used))
    if changed:
        yield f"shrunk     {', '.join(changed)}"
    samples = used.topology.global_batch_size
    yield f"data       {'as configured' if real_data else 'synthetic'}, {samples} samples a step"
    eps = f", eps {used.optimizer.eps:g}" if isinstance(used.optimizer, AdamWConfig) else ""
    yield f"numbers    {precision}, learning rates at their peak{eps}"
