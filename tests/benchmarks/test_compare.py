"""The comparison with other libraries: its plan, its environments, its ratios, and a run at a toy size."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from scaling.transformer import TransformerConfig

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> ModuleType:
    """A module of the benchmarks, which are scripts that find each other in their folder."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module(request.param)


plan = pytest.mark.parametrize("module", ["peers.plan"], indirect=True)


@plan
def test_each_layout_has_plain_pytorch_and_other_libraries(module: ModuleType) -> None:
    for layout in module.LAYOUTS:
        peers = module.chosen(layout, None)
        assert {peer.environment for peer in peers} > {None}
        assert len({peer.name for peer in peers}) == len(peers)


@plan
def test_peers_are_chosen_by_the_beginning_of_their_names(module: ModuleType) -> None:
    names = [peer.name for peer in module.chosen("pipe", "deepspeed,pytorch")]
    assert names == ["pytorch_pipelining_eager", "pytorch_pipelining_compiled", "deepspeed_pipeline"]
    with pytest.raises(SystemExit, match=r"litgpt.*does not run in the layout pipe"):
        module.chosen("pipe", "litgpt")


@plan
def test_our_sides_train_the_model_of_the_peers_in_the_layout(module: ModuleType) -> None:
    for layout in module.LAYOUTS:
        for size, model in module.MODELS.items():
            for config in module.ours(layout, size, {}).values():
                read = TransformerConfig.from_dict(config, quiet=True)
                job = module.job(layout, size)
                assert read.topology.world_size == module.world_size(layout)
                assert read.topology.global_batch_size == job["sequences"]
                assert read.topology.gradient_accumulation_steps == job["micro_batches"]
                assert read.transformer_architecture.hidden_size == model["hidden"]
    assert list(module.ours("tensor", "small", {})) == ["scaling", "scaling_sequence_parallel"]


@pytest.mark.parametrize("module", ["peers.environments"], indirect=True)
def test_pytorch_comes_first_into_an_environment_and_is_not_replaced(module: ModuleType) -> None:
    for environment in module.ENVIRONMENTS.values():
        first, *others = environment.commands()
        assert first[0].startswith("torch==")
        assert all(first[0] in command or "--no-deps" in command for command in others)
        assert environment.peer in others[-1]
        assert "==" in environment.peer


@pytest.mark.parametrize("module", ["compare"], indirect=True)
def test_ratios_are_taken_within_a_round(module: ModuleType) -> None:
    turns = [
        {"ours": [1.0, 1.0], "other": [2.0, 2.0]},
        {"ours": [3.0, 3.0], "other": [3.0, 3.0]},
        {"ours": [1.0, 1.0], "other": [1.5, 1.5]},
        {"ours": [9.0, 9.0]},
    ]
    found = module.comparison(turns, 12, "ours")
    assert found["other"]["by_round"] == [2.0, 1.0, 1.5]
    assert found["other"]["speed_of_ours_relative_to_it"] == 1.5
    assert found["other"]["tokens_per_second"] == 6.0
    assert found["ours"] == {"steps": 8, "tokens_per_second": 6.0}


@pytest.mark.parametrize("module", ["sides"], indirect=True)
def test_the_reason_of_an_end_is_the_last_exception(module: ModuleType) -> None:
    assert module.reason("Traceback\n  File\nValueError: no\n[W] closing\n") == "ValueError: no"
    assert module.reason("") == "it said nothing"


def test_a_run_compares_ours_with_plain_pytorch_and_reports_a_peer_that_fails(tmp_path: Path) -> None:
    script, report = BENCHMARKS / "compare.py", tmp_path / "report.json"
    broken = tmp_path / "environments"
    broken.write_text("a file where a folder is needed")
    command: list[str | Path] = [sys.executable, script, "--size", "toy", "--rounds", "2", "--steps", "1"]
    command += ["--environments", broken, "--peers", "pytorch_eager,litgpt", "--json", report]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    found = json.loads(report.read_text())
    assert list(found["sides"]) == ["scaling", "pytorch_eager"]
    assert list(found["failed"]) == ["litgpt"]
    for side in found["sides"].values():
        assert side["last_loss"] < side["first_loss"] == pytest.approx(found["loss_of_a_guess"], rel=0.05)
        assert side["versions"]["torch"]
