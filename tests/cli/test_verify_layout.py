from __future__ import annotations

from pathlib import Path

from typer.testing import CliRunner

from scaling.cli.main import app
from scaling.cli.verify_layout import explain
from scaling.core import Gap, LayoutReport, Parting


def test_agreement_is_said_with_the_largest_differences() -> None:
    gap = Gap(quantity="gradients", step=2, relative=3e-15, key="layers.0.embedding.weight")
    text = explain(LayoutReport(steps=3, tolerance=1e-10, digest="ab" * 32, elements=1234, worst={"gradients": gap}))
    assert "same training run over 3 steps and 1,234 parameters" in text
    assert "gradients: at most 3.0e-15 apart" in text


def test_a_parting_names_parameter_step_and_rank() -> None:
    gap = Gap(
        quantity="gradients",
        step=1,
        relative=0.5,
        actual=2.0,
        expected=1.0,
        key="layers.1.dense.bias",
        rank=3,
        index=(7,),
    )
    text = explain(LayoutReport(steps=3, tolerance=1e-10, parting=Parting(gap, parameters=("layers.1.dense.bias",))))
    assert "part at step 1 on rank 3: gradients layers.1.dense.bias[7] is 2.0 instead of 1.0" in text
    assert "Look first at: layers.1.dense.bias" in text


def test_a_wrong_configuration_is_refused_before_anything_starts(tmp_path: Path) -> None:
    path = tmp_path / "config.yml"
    path.write_text("topology: {model_parallel_sizes: 2}\n")
    result = CliRunner().invoke(app, ["verify-layout", str(path)])
    assert result.exit_code != 0
    assert "did you mean model_parallel_size" in str(result.exception)
