"""`scaling verify-layout` takes a configuration of every family, and each family computes the same in any layout."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final

import pytest
import typer

from scaling.cli.verify_layout import verify
from scaling.transformer.hf.choose import family_of
from tests.transformer.hf.in_memory import config_json
from tests.transformer.hf.tiny_models import FAMILIES

LAYOUT: Final = {
    "pipe_parallel_size": 2,
    "data_parallel_size": 1,
    "model_parallel_size": 2,
    "sequence_parallel": True,
    "micro_batch_size": 2,
    "gradient_accumulation_steps": 2,
}
QUICK: Final = ("gemma2", "olmo2")
"""Windows, caps and norms around 0 on both sides of a branch; a norm over all heads, behind a branch."""


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in QUICK else [pytest.mark.slow]) for name in FAMILIES]
)
def test_a_configuration_of_each_family_is_verified(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = config_json(name)
    sections = {
        "topology": LAYOUT,
        "transformer_architecture": family_of(config).section(config),
        "data": {"eod_token_id": config["eos_token_id"]},
    }
    path = tmp_path / "config.yml"
    path.write_text(json.dumps(sections))
    with pytest.raises(typer.Exit) as left:
        verify(path, steps=2)  # a bias that is zero at first shows in the second
    said = capsys.readouterr().out
    assert left.value.exit_code == 0, said
    assert "pipe 2 x data 1 x model 2 (4 processes), sequence parallel" in said
    assert "The layouts are the same training run (to 1e-10)." in said
