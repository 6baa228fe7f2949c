"""benchmarks/on_gpu.sh, every line of it, at a toy size on a CPU: what it writes, its time limit, how it is ended."""

from __future__ import annotations

import json
import math
import os
import runpy
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from scaling.transformer import TransformerConfig
from scaling.transformer.config.model_plan import plan_of

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "benchmarks" / "on_gpu.sh"


def start(results: Path, *arguments: str) -> subprocess.Popen[str]:
    command = [str(SCRIPT), "--toy", "--results", str(results), *arguments]
    environment = {**os.environ, "PYTHON": sys.executable, "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)


def result(results: Path, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((results / f"gpu-{name}.json").read_text())
    return found


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_every_piece_is_measured_and_written(tmp_path: Path) -> None:
    process = start(tmp_path)
    told = process.communicate()[0]
    assert process.returncode == 0, told
    assert result(tmp_path, "tests")["complete"]
    toy, float8 = result(tmp_path, "toy"), result(tmp_path, "float8")
    assert toy["speed_relative_to_transformers"] > 0
    assert float8["loss_of_float8_relative_to_bfloat16"] == pytest.approx(1.0, rel=0.01)
    assert "float8 scaled per tensor" in float8["sides"]["float8"]["kernels"]
    for piece in (toy, float8):
        for side in piece["sides"].values():
            assert side["complete"]
            assert side["losses"][0] == pytest.approx(math.log(64), rel=0.2)
            assert side["losses"][-1] < side["losses"][0]
            assert side["mfu_full_attention"] > side["mfu_causal_attention"] > 0
    assert {"tests: complete", "toy: complete", "float8: complete"} <= {
        line.split(",")[0] for line in told.splitlines()
    }


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_asked_to_leave_it_keeps_what_it_has(tmp_path: Path) -> None:
    process = start(tmp_path, "--only", "float8", "toy")
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("scaling "):  # the first of two sides is done
            break
    process.send_signal(signal.SIGTERM)
    told = process.communicate()[0]
    assert process.returncode == 75, told
    found = result(tmp_path, "float8")
    assert not found["complete"]
    assert found["sides"]["scaling"]["complete"]
    assert "toy: left out, no time" in told


def test_what_there_is_no_time_for_is_left_out_and_named(tmp_path: Path) -> None:
    process = start(tmp_path, "--seconds", "15")
    assert process.communicate()[0].splitlines() == [
        f"{name}: left out, no time" for name in ("tests", "toy", "float8")
    ]
    assert process.returncode == 75
    assert list(tmp_path.iterdir()) == []


def test_a_side_that_failed_and_one_that_is_missing_are_told_apart() -> None:
    module = runpy.run_path(str(ROOT / "benchmarks" / "on_gpu.py"))
    piece, report_of = module["TOY"]["toy"], module["report_of"]
    done = {"complete": True, "tokens_per_second": 3.0, "losses": [1.0]}
    assert report_of(piece, {"scaling": done})["failed"] is False
    assert report_of(piece, {"scaling": done})["complete"] is False
    assert report_of(piece, {"scaling": done, "transformers": {"failed": 1}})["failed"] is True
    both = report_of(piece, {"scaling": done, "transformers": {**done, "tokens_per_second": 2.0}})
    assert both["complete"]
    assert both["speed_relative_to_transformers"] == 1.5


def test_shapes_are_those_of_the_models_and_fit_into_nine_minutes() -> None:
    module = runpy.run_path(str(ROOT / "benchmarks" / "on_gpu.py"))
    for piece in [*module["PIECES"].values(), *module["TOY"].values()]:
        assert (ROOT / "benchmarks" / "shapes" / f"{piece.shape}.yml").is_file()
        assert len(piece.sides) == 2
    shapes = [piece.seconds for name, piece in module["PIECES"].items() if name != "float8"]
    assert sum(shapes) + module["TESTS_SECONDS"] <= 520 - module["GRACE"]


@pytest.mark.parametrize(
    ("name", "parameters"),
    [("llama_1b", 1_235_814_400), ("llama_3b", 3_212_749_824), ("llama_8b_8_layers", 8_030_261_248 - 24 * 218_112_000)],
)
def test_a_shape_has_the_parameters_of_its_model(name: str, parameters: int) -> None:
    config = TransformerConfig.from_yaml(ROOT / "benchmarks" / "shapes" / f"{name}.yml")
    assert plan_of(config.transformer_architecture).num_parameters == parameters
    assert config.topology.world_size == 1
