"""The page on inference: its code runs, its options are all there are, its numbers are those that are planned."""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from scaling.core import predicted_gain
from scaling.transformer import Sampling, TransformerInferenceModule
from scaling.transformer.config.architecture import TransformerArchitectureConfig
from scaling.transformer.config.model_plan import plan_of
from scaling.transformer.config.presets import preset
from scaling.transformer.data.tokenizer import train_tokenizer
from scaling.transformer.inference.generation.completion import Completion
from scaling.transformer.inference.generation.options import Asked
from scaling.transformer.inference.generation.plan import Need, attention_layers, plan_generation, row_bytes
from tests.test_documentation import blocks, options_of

PAGE = Path(__file__).parents[1] / "docs/inference.md"
TEXT = PAGE.read_text()


def printed(block: str) -> str:
    """Return what a block of code prints."""
    shown = io.StringIO()
    with contextlib.redirect_stdout(shown):
        exec(block, {})
    return shown.getvalue()


def code(*names: str) -> list[str]:
    """Return the blocks of code that name all of these."""
    return [block for block in blocks(PAGE, "python") if all(name in block for name in names)]


def model(monkeypatch: pytest.MonkeyPatch, *, layers: int) -> TransformerInferenceModule:
    """Return what the page opens: a model of random weights, with all tokens of the page."""
    config = {"hidden_size": 8, "num_attention_heads": 1, "vocab_size": 8192, "sequence_length": 64}
    made = TransformerInferenceModule(
        TransformerArchitectureConfig.from_dict({**config, "num_layers": layers}),
        tokenizer=train_tokenizer(["Once upon a time"], 270),
    )
    monkeypatch.setattr(TransformerInferenceModule, "from_checkpoint", lambda *_, **__: made)
    return made


def test_the_calls_that_are_shown_work(monkeypatch: pytest.MonkeyPatch) -> None:
    small = model(monkeypatch, layers=1)
    (calls,) = code("stream_text")
    shown = printed(calls).splitlines()
    assert int(shown[-1]) == small.plan("Once upon a time", max_tokens=64).bytes
    assert {line.split()[0] for line in shown[-2:-20:-1]} == {"0", "1"}
    model(monkeypatch, layers=30)
    (likelihoods,) = code("hidden_states")
    assert re.search(r"^-\d+\.\d+ False tensor", printed(likelihoods))


def test_the_rings_are_drawn_as_they_are() -> None:
    (drawing,) = code("TokenRing")
    assert printed(drawing).strip() == blocks(PAGE, "text")[0].strip()
    assert f"two groups give {predicted_gain(2, 2):.1f} times" in TEXT.replace("\n", " ")


def test_every_option_and_every_result_is_there() -> None:
    named = {*Asked.__annotations__, *Sampling.__dataclass_fields__, *Completion.__dataclass_fields__}
    assert not {name for name in named if not re.search(rf"`{name}\b", TEXT)}
    options = {option for option in options_of(["generate"]) if option.startswith("--")}
    assert not {option for option in options if not re.search(rf"{option}\b", TEXT)}


def test_the_memory_is_worked_out_as_it_is_planned() -> None:
    settings: dict[str, Any] = {**preset("smollm2-135m"), "precision": "bfloat16"}
    layers = attention_layers(plan_of(TransformerArchitectureConfig.from_dict(settings)))
    bytes_of = row_bytes([layers], 1, torch.bfloat16.itemsize)
    assert f"{bytes_of(1):,} bytes a position" in TEXT
    assert f"1127 positions: {bytes_of(1127) / 10**6:.0f} MB" in TEXT.replace("\n", " ")
    needs = [Need(length + 100) for length in (10,) * 60 + (1000,) * 4]
    every = plan_generation(needs, groups=1, chunk=1024, bytes_of=bytes_of)
    assert [(pool.rows, pool.capacity) for pool in every.pools] == [(4, 1100), (60, 110)]
    padded = 64 * bytes_of(1100)
    text = TEXT.replace("\n", " ")
    assert "60 rows of 110 positions and 4 of 1100" in text
    assert f"{every.bytes / 10**6:.0f} MB, where padding all to the longest would take {padded / 10**6:.0f} MB" in text
    fewer = plan_generation(needs, groups=1, chunk=1024, bytes_of=bytes_of, limit=10**8)
    assert [(pool.rows, pool.capacity) for pool in fewer.pools] == [(1, 1100), (29, 110)]
    assert "29 rows of 110 positions and 1 of 1100" in text
