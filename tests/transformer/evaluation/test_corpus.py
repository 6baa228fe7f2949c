"""The loss of a data set is that of a training's evaluation, in every layout, and bits per byte are of its text."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from scaling.core import LaunchContext, Topology, TopologyConfig, evaluation_steps, open_documents
from scaling.transformer.data.shards import TokenizeOptions
from scaling.transformer.data.tokenize import tokenize_files
from scaling.transformer.data.tokenizer import Tokenizer, train_tokenizer
from scaling.transformer.evaluation.corpus import CorpusLoss, evaluate_corpora, micro_batches
from scaling.transformer.inference.module import TransformerInferenceModule
from tests.distributed import run_distributed
from tests.transformer.small import metrics, train_small, values

WORDS = ["the", "cät", "🙂", "sat", "on", "日本", "mat.", "\n"]
ONE = {"device": "cpu", "micro_batch_size": 2, "gradient_accumulation_steps": 1}
FLOAT64 = {"transformer_architecture.precision": "float64"}


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@dataclass(frozen=True)
class Trained:
    """A run that was evaluated at its end."""

    checkpoints: Path
    held_out: Path
    loss: float
    texts: list[str]


def write_texts(prefix: Path, tokenizer: Path, texts: list[str]) -> Path:
    """Write a data set."""
    file = prefix.with_suffix(".jsonl")
    file.write_text("".join(f"{json.dumps({'text': text})}\n" for text in texts))
    tokenize_files([file], prefix, TokenizeOptions(tokenizer))
    return prefix


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    folder = tmp_path_factory.mktemp("run")
    draw = random.Random(3)
    texts = [" ".join(draw.choices(WORDS, k=draw.randint(1, 20))) for _ in range(60)]
    train_tokenizer(texts[:4], 262).save(folder / "tokenizer.json")
    training, held_out = (
        write_texts(folder / name, folder / "tokenizer.json", part)
        for name, part in (("training", texts[:40]), ("held_out", texts[40:]))
    )
    settings = {
        **FLOAT64,
        "transformer_architecture.vocab_size": None,
        "transformer_architecture.vocab_file": str(folder / "tokenizer.json"),
        "data.validation_data_prefixes": [str(held_out)],
        "trainer.eval_interval": 2,
        "trainer.train_iterations": 2,
        "trainer.save_dir": str(folder / "checkpoints"),
    }
    (loss,) = values(train_small(training, folder, settings), "evaluation/loss")
    return Trained(folder / "checkpoints", held_out, loss, texts[40:])


def evaluate(
    checkpoints: Path, *prefixes: Path, micro_batch_size: int = 2, samples: int | None = None
) -> list[CorpusLoss]:
    layout = TopologyConfig.from_dict({**ONE, "micro_batch_size": micro_batch_size}, quiet=True)
    return list(evaluate_corpora(checkpoints, prefixes, layout, Topology.single(), samples=samples))


def evaluate_as_rank(
    rank: int, world_size: int, sizes: dict[str, int], checkpoints: Path, prefixes: list[Path]
) -> list[CorpusLoss]:
    layout = TopologyConfig.from_dict({**ONE, **sizes}, quiet=True)
    with Topology.connect(layout, LaunchContext.from_environment()) as topology:
        return list(evaluate_corpora(checkpoints, prefixes, layout, topology))


def test_the_loss_is_that_of_the_training_in_every_layout(trained: Trained) -> None:
    alone, again = evaluate(trained.checkpoints, trained.held_out, trained.held_out)
    assert alone == again
    assert alone.samples % 16  # the last batch is not full
    assert alone.loss == pytest.approx(trained.loss, rel=1e-12)
    assert alone.perplexity == pytest.approx(math.exp(trained.loss))
    sizes = {"data_parallel_size": 2, "pipe_parallel_size": 2, "model_parallel_size": 2}
    for everyone in run_distributed(evaluate_as_rank, 8, sizes, trained.checkpoints, [trained.held_out]):
        assert (everyone[0].samples, everyone[0].tokens) == (alone.samples, alone.tokens)
        assert everyone[0].bytes == pytest.approx(alone.bytes, rel=1e-12)
        assert everyone[0].loss == pytest.approx(alone.loss, rel=1e-10)


def test_it_is_the_log_likelihood_of_documents_and_bytes_are_those_of_their_text(
    trained: Trained, tmp_path: Path
) -> None:
    """Each document is a row of its own here: none is longer, and what is left of a row goes to the next one."""
    tokenizer = Tokenizer.from_file(trained.checkpoints / "vocab.json")
    short = [text for text in trained.texts if len(tokenizer.encode(text)) < 9]
    assert len(short) > 2
    nats = 0.0
    model = TransformerInferenceModule.from_checkpoint(trained.checkpoints)
    for number, text in enumerate(short):
        data = write_texts(tmp_path / str(number), trained.checkpoints / "vocab.json", [text])
        (found,) = evaluate(trained.checkpoints, data)
        tokens = [int(token) for token in open_documents(data).read(0)]
        assert found.nats == pytest.approx(-float(model.log_likelihood(torch.tensor([tokens])).sum()), rel=1e-10)
        assert found.tokens == found.weight == len(tokens) - 1
        behind = len(text.encode()) - int(TOKEN_BYTES_OF_FIRST(tokenizer, text))
        assert found.bytes == pytest.approx(behind)
        assert found.bits_per_byte == pytest.approx(found.nats / math.log(2) / behind)
        nats += found.nats
