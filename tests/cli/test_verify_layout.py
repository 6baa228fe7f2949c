"""`scaling verify-layout`: what it compares, and what it says of agreement, of a difference and of wrong use."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from scaling.cli import verify_layout as module
from scaling.cli.main import main
from scaling.cli.many_values import spread
from scaling.core import TopologyConfig
from scaling.transformer import TransformerConfig
from tests.transformer.small import SMALL, build_corpus, nested

CLUSTER = """
topology:
  model_parallel_size: 8
  pipe_parallel_size: 8
  data_parallel_size: 64
  micro_batch_size: 1
  gradient_accumulation_steps: 32
  sequence_parallel: true
transformer_architecture:
  hidden_size: 8192
  num_attention_heads: 64
  attention_num_kv_heads: 4
  num_layers: 79
  vocab_size: 128001
  sequence_length: 8192
  precision: bfloat16
  dropout_after_mlp: 0.1
optimizer: {zero: true}
learning_rate_scheduler: {learning_rate: 0.0003, learning_rate_warmup_steps: 2000}
data: {eod_token_id: 128000}
"""

Run = Callable[..., tuple[int, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """Run `scaling verify-layout` on a configuration; return its status and all it said."""

    def command(text: str, *arguments: str) -> tuple[int, str]:
        path = tmp_path / "config.yml"
        path.write_text(text)
        monkeypatch.setattr("sys.argv", ["scaling", "verify-layout", str(path), *arguments])
        with pytest.raises(SystemExit) as leaving:
            main()
        shown = capsys.readouterr()
        return int(leaving.value.code or 0), shown.out + shown.err

    return command


def test_a_configuration_for_a_cluster_is_verified_on_a_laptop(run: Run) -> None:
    status, said = run(CLUSTER, "--steps", "2")
    assert status == 0, said
    assert "pipe 2 x data 2 x model 2 (8 processes), sequence parallel" in said
    assert "num_layers 79 -> 3" in said
    assert "identical, SHA-256" in said
    assert "The layouts are the same training run (to 1e-10)." in said
    assert "these are the same" not in said


def test_the_reference_may_be_any_layout(run: Run) -> None:
    sizes = ["topology.data_parallel_size=2", "topology.model_parallel_size=2"]
    status, said = run(
        CLUSTER, "topology.pipe_parallel_size=1", "--against", *sizes, "--processes", "4", "--steps", "1"
    )
    assert status == 0, said
    assert "reference  pipe 1 x data 2 x model 2 (4 processes)" in said


def test_a_layout_that_is_its_own_reference_proves_nothing_and_that_is_said(run: Run) -> None:
    status, said = run("transformer_architecture: {vocab_size: 500, num_layers: 1}", "--steps", "1")
    assert status == 0, said
    assert "note       these are the same; name another layout, for example topology.model_parallel_size=2" in said


def test_the_reference_is_held_against_the_model_that_is_verified(run: Run) -> None:
    config = "transformer_architecture: {num_attention_heads: %d, hidden_size: 96, vocab_size: 50}"
    status, said = run(config % 12, "--against", "topology.model_parallel_size=3", "--steps", "1")
    assert status == 0, said
    assert "reference  pipe 1 x data 1 x model 3 (3 processes)" in said
    status, said = run(config % 16, "--against", "topology.model_parallel_size=3", "--steps", "1")
    assert status == 2
    assert "num_attention_heads: is 16, but must be divisible by topology.model_parallel_size (3)" in said


def test_a_users_layer_that_counts_its_bias_on_every_rank_is_named(run: Run) -> None:
    sizes = "model_parallel_size: 2, pipe_parallel_size: 1, data_parallel_size: 1"
    status, said = run(
        f"topology: {{{sizes}}}\ntransformer_architecture: {{vocab_size: 500, num_layers: 4}}",
        *("--layers", "tests.cli.broken_layers:layer_specs"),
    )
    assert status == 1, said
    assert "The layouts part at step 2: loss is" in said
    assert "comes in through layers.2.mlp.dense_out.bias: " in said


@pytest.mark.parametrize(
    ("text", "arguments", "words"),
    [
        ("topology: {model_parallel_sizes: 2}", (), "did you mean model_parallel_size"),
        ("", ("--against", "trainer.seed=1"), "layouts differ in their topology alone"),
        ("", ("--against", "topology.model_parallel_size=3"), "topology.model_parallel_size (3)"),
        ("", ("--layers", "no_such_module:layers"), "no_such_module"),
        ("", ("--layers", "tests.cli.broken_layers"), "module:function"),
        (CLUSTER, ("--processes", "4"), "takes at least 8 processes"),
        (
            "transformer_architecture: {dropout_stream: per_rank, dropout_after_mlp: 0.1}",
            (),
            "dropout_stream=layout_invariant",
        ),
    ],
)
def test_what_is_wrong_is_said_with_status_2(run: Run, text: str, arguments: tuple[str, ...], words: str) -> None:
    status, said = run(text, *arguments)
    assert status == 2, said
    assert words in said
    assert "Traceback" not in said


@pytest.mark.parametrize(("vocab_size", "used"), [(0, 1001), (500, 500)])
def test_a_vocabulary_that_only_the_tokenizer_knows_is_made_up(vocab_size: int, used: int) -> None:
    config = TransformerConfig.from_dict({"transformer_architecture": {"vocab_size": vocab_size}})
    found = module._used(config, TopologyConfig(), 1, full_size=True, real_data=False)
    assert found.transformer_architecture.vocab_size == used


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("c a=1 --against b=2 c=3 --steps 2", "c a=1 --against b=2 --against c=3 --steps 2"),
        ("--against b=2 --against c=3 d=4", "--against b=2 --against c=3 --against d=4"),
        ("--steps 2 c a=1", "--steps 2 c a=1"),
        ("c --against", "c --against"),
    ],
)
def test_an_option_may_take_several_values(given: str, meant: str) -> None:
    assert list(spread(given.split(), ("--against",))) == meant.split()


def test_at_full_size_the_configured_data_are_used_where_they_are(run: Run, tmp_path: Path) -> None:
    sizes = {"topology.data_parallel_size": 2, "topology.pipe_parallel_size": 1, "topology.model_parallel_size": 1}
    settings = {**SMALL, **sizes, "data.data_prefixes": [str(tmp_path / "corpus")], "data.validation_fraction": 0.2}
    text = json.dumps(nested(settings))
    status, without = run(text, "--full-size", "--steps", "1")
    assert status == 0, without
    build_corpus(tmp_path / "corpus")
    status, with_data = run(text, "--full-size", "--steps", "1")
    assert status == 0, with_data
    assert "shrunk" not in with_data
    assert "data       synthetic" in without
    assert "data       as configured" in with_data
    assert without.split("loss")[1] != with_data.split("loss")[1]
