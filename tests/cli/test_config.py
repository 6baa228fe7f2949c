"""`scaling config` writes templates and schemas, and checks a file in one pass without importing torch."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from typer.testing import CliRunner

from scaling.cli.config import app
from scaling.transformer.config import TransformerConfig

runner = CliRunner()


def test_the_template_is_a_configuration(tmp_path: Path) -> None:
    path = tmp_path / "config.yml"
    written = runner.invoke(app, ["template", "--output", str(path)])
    assert (written.exit_code, written.output) == (0, f"wrote {path}\n")
    assert TransformerConfig.from_yaml(path) == TransformerConfig()
    assert runner.invoke(app, ["template"]).output == path.read_text()


def test_the_schema_is_json(tmp_path: Path) -> None:
    result = runner.invoke(app, ["schema"])
    assert result.exit_code == 0
    assert "topology" in json.loads(result.output)["properties"]
    refused = runner.invoke(app, ["schema", "-o", str(tmp_path / "no" / "schema.json")])
    assert (refused.exit_code, refused.output) == (
        74,
        f"cannot write {tmp_path / 'no' / 'schema.json'}: No such file or directory\n",
    )


def test_a_valid_file_is_summed_up_with_notes(tmp_path: Path) -> None:
    path = tmp_path / "config.yml"
    sizes = "{world_size: 8, model_parallel_size: 2, pipe_parallel_size: 2}"
    path.write_text(f"topology: {sizes}\nlogger: {{wandb_api_key: x}}\n")
    result = runner.invoke(app, ["check", str(path), "trainer.train_iterations=3", "data.corpus=python_stdlib"])
    assert result.exit_code == 0
    assert result.output == (
        f"{path} is valid: 8 processes (pipe 2, data 2, model 2), 4 samples of 2048 tokens a step.\n"
        "  note: logger.wandb_api_key: has no effect: keys in files end up in logs and checkpoints; remove it, and "
        "export WANDB_API_KEY instead\n"
        "  note: trainer.save_dir: is not given: nothing is saved\n"
    )


def test_everything_wrong_is_reported_at_once_with_status_2(tmp_path: Path) -> None:
    path = tmp_path / "config.yml"
    path.write_text("topology: {model_parallel_sise: 2}\ntransformer_architecture: {vocab_file: absent.json}\n")
    result = runner.invoke(app, ["check", str(path), "trainer.sed=3", "oops"])
    assert result.exit_code == 2
    assert result.output == (
        f"4 problems in {path}:\n"
        "  - 'oops' is not KEY=VALUE; write for example topology.data_parallel_size=2\n"
        "  - topology.model_parallel_sise: unknown key; did you mean model_parallel_size?\n"
        "  - trainer.sed: unknown key; did you mean seed?\n"
        "  - transformer_architecture.vocab_file: is 'absent.json', but there is no such file; correct it\n"
    )


def test_a_missing_file_is_named_with_status_2(tmp_path: Path) -> None:
    result = runner.invoke(app, ["check", str(tmp_path / "absent.yml")])
    assert result.exit_code == 2
    assert result.output == f"cannot read the configuration {tmp_path / 'absent.yml'}: No such file or directory\n"


def test_the_command_does_not_import_torch() -> None:
    script = (
        "import sys, scaling.cli.config as cli\n"
        "groups = [{'group_name': 'all'}]\n"
        "cli.TransformerConfigHere.from_dict({'training_groups': groups, 'trainer': {'save_dir': 'absent'}})\n"
        "print('torch' in sys.modules)"
    )
    finished = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert finished.stdout == "False\n"
