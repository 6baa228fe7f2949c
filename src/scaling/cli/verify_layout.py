"""`scaling verify-layout`: prove that two layouts are the same training run, or say where they part."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from scaling.core import ExitStatus, LayoutReport, TopologyConfig, single_process, verify_layout
from scaling.transformer import TransformerConfig
from scaling.transformer.verify.recipe import at_full_rate, recipe_of, synthetic_text
from scaling.transformer.verify.shrink import shrunk

_VOCABULARY = 1000
_EVALUATION_SAMPLES = 5


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
            metavar="KEY=VALUE",
            help="The reference layout, such as topology.data_parallel_size=2. Default: one process.",
        ),
    ] = None,
    steps: Annotated[int, typer.Option(min=1, help="Optimizer steps to compare.")] = 3,
    full_size: Annotated[
        bool, typer.Option("--full-size", help="Keep the model's sizes instead of shrinking it.")
    ] = False,
) -> None:
    """Train in two layouts at once, on this machine's CPU in float64, and compare weights, losses and gradients.

    The model is made small, with the structure that a layout can break left as it is; the data are synthetic. Ends with
    0 where the layouts are the same run, with 1 where they part.
    """
    exact = [
        "transformer_architecture.precision=float64",
        "transformer_architecture.dropout_stream=layout_invariant",
        "transformer_architecture.masked_softmax.kernel=torch",
        "topology.device=cpu",
    ]
    wanted = at_full_rate(TransformerConfig.from_yaml(config, [*(overrides or ()), *exact]))
    if wanted.transformer_architecture.vocab_size == 0:  # it would come from the tokenizer
        architecture = wanted.transformer_architecture.model_copy(update={"vocab_size": _VOCABULARY})
        wanted = wanted.model_copy(update={"transformer_architecture": architecture})
    if not full_size:
        wanted = shrunk(wanted)
    recipe = recipe_of(wanted, evaluation=synthetic_text(wanted, _EVALUATION_SAMPLES, seed=1))
    layout = wanted.topology
    reference = single_process(layout)
    if against:
        sizes = {"data_parallel_size": 1, "pipe_parallel_size": 1, "model_parallel_size": 1}
        given = {"topology": {**sizes, "gradient_accumulation_steps": 1, "global_batch_size": layout.global_batch_size}}
        reference = TransformerConfig.from_dict(given, against, quiet=True).topology
    typer.echo(f"{describe(layout)} against {describe(reference)}, {layout.global_batch_size} samples a step, float64")
    report = verify_layout(recipe, layout, reference, steps=steps, progress=lambda message: typer.echo(f"  {message}"))
    typer.echo(explain(report))
    raise typer.Exit(ExitStatus.DONE if report.agrees else ExitStatus.FAILURE)


def describe(layout: TopologyConfig) -> str:
    """Return a layout in a few words."""
    return (
        f"pipe {layout.pipe_parallel_size} x data {layout.data_parallel_size} x model {layout.model_parallel_size}"
        f"{', sequence parallel' if layout.sequence_parallel else ''}"
    )


def explain(report: LayoutReport) -> str:
    """Return what was found, for a person."""
    if report.parting is None:
        lines = [f"The layouts are the same training run over {report.steps} steps and {report.elements:,} parameters:"]
        lines.append(f"  initial weights: identical, SHA-256 {(report.digest or '')[:16]}...")
        lines += [
            f"  {quantity}: at most {gap.relative:.1e} apart"
            for quantity, gap in report.worst.items()
            if quantity != "initial weights"
        ]
        return "\n".join(lines)
    gap, parting = report.parting.gap, report.parting
    what = gap.quantity if gap.key is None else f"{gap.quantity} {gap.key}{list(gap.index) if gap.index else ''}"
    rank = "" if gap.rank is None else f" on rank {gap.rank}"
    lines = [
        f"The layouts part at step {gap.step}{rank}: {what} is {gap.actual!r} instead of {gap.expected!r} "
        f"({gap.relative:.1e} relative, {report.tolerance:.0e} allowed)."
    ]
    if parting.message:
        lines.append(f"  {parting.message}")
    if parting.parameters:
        lines.append("  Look first at: " + ", ".join(parting.parameters[:5]))
    return "\n".join(lines)
