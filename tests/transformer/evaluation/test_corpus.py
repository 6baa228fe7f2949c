"""The loss of a data set is that of a training's evaluation, in every layout, and bits per byte are of its text."""

from __future__ import annotations

import json
import math
import random
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from torch import Tensor

from scaling.core import (
    Checkpointer,
    ConfigError,
    DataError,
    DataRefusedError,
    LaunchContext,
    Learner,
    Topology,
    TopologyConfig,
    open_documents,
)
from scaling.transformer.config.root import TransformerConfig
from scaling.transformer.data.load import load_for_evaluation
from scaling.transformer.data.prepare import prepare_data
from scaling.transformer.data.shards import TokenizeOptions
from scaling.transformer.data.tokenize import tokenize_files
from scaling.transformer.data.tokenizer import Tokenizer, train_tokenizer
from scaling.transformer.evaluation.corpus import CorpusLoss, evaluate_corpora, micro_batches
from scaling.transformer.evaluation.model import EvaluatedModel
from scaling.transformer.evaluation.settings import evaluation_settings
from scaling.transformer.inference.module import TransformerInferenceModule
from scaling.transformer.recipe import recipe_of
from tests.distributed import run_distributed
from tests.transformer.finetuned import write_base
from tests.transformer.small import build_corpus, train_small, values

WORDS = ["the", "cät", "🙂", "sat", "on", "日本", "mat.", "\n"]
AXES = ("data_parallel_size", "pipe_parallel_size", "model_parallel_size")
ONE = {**dict.fromkeys(AXES, 1), "device": "cpu", "micro_batch_size": 2, "gradient_accumulation_steps": 1}
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


def pieces(config: TransformerConfig) -> list[Tensor]:
    """Return the pieces of documents that lie in the rows of a data set; none sees another one."""
    [prefix] = config.data.data_prefixes or []
    documents, rows = open_documents(prefix), load_for_evaluation(config)
    spans = [span for index in range(len(rows)) for span in rows[index].spans]
    return [
        torch.from_numpy(documents.read(span.document, span.start, span.stop).astype(np.int64)).unsqueeze(0)
        for span in spans
    ]


def settings_for(checkpoints: Path, prefix: Path) -> TransformerConfig:
    model = EvaluatedModel.of(Checkpointer(None).find(checkpoints).require())
    layout = TopologyConfig.from_dict(ONE, quiet=True)
    return prepare_data(
        evaluation_settings(model.settings, model.architecture, prefix, layout, vocab_file=model.tokenizer_file)
    )


def evaluate_in_parts(rank: int, world_size: int) -> None:
    """Share the rows among copies of a model, and compare with all of them in one process."""
    at_once = datetime(2026, 1, 1, tzinfo=timezone.utc)  # each rank has a copy: they must not be of different seconds
    with tempfile.TemporaryDirectory() as folder, mock.patch("scaling.core.checkpoint.save.datetime") as clock:
        clock.now.return_value = at_once
        write_base(Path(folder) / "base", precision="float64")
        data = build_corpus(Path(folder) / "data", documents=9, largest=20)
        (alone,) = evaluate(Path(folder) / "base", data)
        sizes = {"data_parallel_size": world_size}
        (found,) = evaluate_as_rank(rank, world_size, sizes, Path(folder) / "base", [data])
    assert alone.samples % (2 * world_size)  # the last batch is filled up
    assert (found.samples, found.tokens) == (alone.samples, alone.tokens)
    assert found.loss == pytest.approx(alone.loss, rel=1e-12)


def test_copies_of_the_model_share_the_rows() -> None:
    run_distributed(evaluate_in_parts, 3)


def test_it_is_the_log_likelihood_of_documents_and_bytes_are_those_of_their_text(trained: Trained) -> None:
    tokenizer = Tokenizer.from_file(trained.checkpoints / "vocab.json")
    model = TransformerInferenceModule.from_checkpoint(trained.checkpoints)
    texts = pieces(settings_for(trained.checkpoints, trained.held_out))
    assert len(texts) > len(trained.texts)  # some are cut
    (found,) = evaluate(trained.checkpoints, trained.held_out, micro_batch_size=3)
    assert found.nats == pytest.approx(-sum(float(model.log_likelihood(text).sum()) for text in texts), rel=1e-10)
    assert found.tokens == found.weight == sum(text.shape[1] - 1 for text in texts)
    # But for the first token of each document all are targets. A name has a letter for each byte.
    wanted = sum(len(text.encode()) for text in trained.texts)
    wanted -= sum(len(tokenizer.token_name(tokenizer.encode(text)[0]) or "") for text in trained.texts)
    assert found.bytes == pytest.approx(wanted, rel=1e-12)
    assert found.bits_per_byte == pytest.approx(found.nats / math.log(2) / wanted)


def test_a_few_samples_are_those_of_a_limited_evaluation_of_the_training(trained: Trained) -> None:
    config = settings_for(trained.checkpoints, trained.held_out)
    data = load_for_evaluation(config)
    learner = Learner(recipe_of(config, data, data), config.topology, Topology.single())
    Checkpointer(None).load(
        trained.checkpoints / "global_step2", learner.module.global_tensors(), allowed_unexpected=["^optimizer"]
    )
    limited = learner.evaluate(limit=3)
    learner.close()
    assert limited is not None
    (found,) = evaluate(trained.checkpoints, trained.held_out, samples=6)
    assert found.samples == 6
    assert found.loss == pytest.approx(float(limited.loss), rel=1e-12)
    whole = evaluate(trained.checkpoints, trained.held_out, samples=len(data))
    assert whole == evaluate(trained.checkpoints, trained.held_out, samples=10**9)


@pytest.fixture(scope="module")
def tuned(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, float]:
    """Fine-tune on records; return the checkpoints, the records held out, and the loss on them."""
    folder = tmp_path_factory.mktemp("tuned")
    files = []
    for name, texts in (("training", trained.texts[:15]), ("held_out", trained.texts[15:])):
        files.append(folder / f"{name}.jsonl")
        lines = [json.dumps({"prompt": "sat", "completion": text[:14]}) for text in texts]
        files[-1].write_text("\n".join(lines))
    settings = {
        **FLOAT64,
        "transformer_architecture.vocab_size": None,
        "transformer_architecture.sequence_length": 48,
        "transformer_architecture.vocab_file": str(trained.checkpoints / "vocab.json"),
        "transformer_architecture.lora_config": {"rank": 2, "alpha": 8.0},
        "transformer_architecture.softprompt_config": {"name": "prompt", "n_tokens": 3},
        "transformer_architecture.finetunable_token_ids": [0, 7],
        "data.record_format": "auto",
        "data.records_dir": str(folder / "records"),
        "data.validation_data_prefixes": [str(files[1])],
        "trainer.eval_interval": 2,
        "trainer.train_iterations": 2,
        "trainer.load_dir": str(trained.checkpoints),
        "trainer.save_dir": str(folder / "checkpoints"),
    }
    (loss,) = values(train_small(files[0], folder, settings), "evaluation/loss")
    return folder / "checkpoints", files[1], loss


def test_records_and_what_was_trained_on_a_base_are_evaluated_too(tuned: tuple[Path, Path, float]) -> None:
    checkpoints, records, loss = tuned
    (alone,) = evaluate(checkpoints, records)
    assert alone.loss == pytest.approx(loss, rel=1e-12)
    assert alone.bytes is not None
    (prefix,) = (path.with_suffix("") for path in checkpoints.with_name("records").rglob("*held_out*.bin"))
    sizes = {"pipe_parallel_size": 2, "model_parallel_size": 2}
    for (everyone,) in run_distributed(evaluate_as_rank, 4, sizes, checkpoints, [prefix]):
        assert everyone.loss == pytest.approx(loss, rel=1e-10)


@pytest.mark.parametrize(
    ("counts", "sizes", "wanted"),
    [([5], (2, 1, 2), 1), ([5], (1, 2, 2), 3), ([5, 90], (1, 2, 2), 8), ([1], (1, 4, 1), 1), ([500], (2, 4, 1), 16)],
)
def test_a_step_fills_the_pipeline_with_no_more_than_there_is(
    counts: list[int], sizes: tuple[int, int, int], wanted: int
) -> None:
    names = ("data_parallel_size", "pipe_parallel_size", "micro_batch_size")
    layout = TopologyConfig.from_dict({**ONE, **dict(zip(names, sizes, strict=True))}, quiet=True)
    assert micro_batches(counts, layout) == wanted


def test_what_does_not_fit_is_refused_before_the_model_is_loaded(trained: Trained, tmp_path: Path) -> None:
    model = EvaluatedModel.of(Checkpointer(None).find(trained.checkpoints).require())
    three = TopologyConfig.from_dict({**ONE, "model_parallel_size": 3}, quiet=True)
    with pytest.raises(ConfigError, match=r"num_attention_heads: is 4, but must be divisible by .*model_parallel_size"):
        evaluation_settings(model.settings, model.architecture, trained.held_out, three, vocab_file=None)
    train_tokenizer(WORDS, 260).save(tmp_path / "other.json")
    foreign = write_texts(tmp_path / "foreign", tmp_path / "other.json", ["the mat"])
    alone = tmp_path / "global_step2"
    alone.symlink_to(trained.checkpoints / "global_step2")  # no tokenizer is beside it, but its digest is known
    with pytest.raises(DataError, match=r"foreign was made with a tokenizer of SHA-256 .*but .* was trained with that"):
        evaluate(alone, foreign)
    (found,) = evaluate(alone, trained.held_out)
    assert found.loss == pytest.approx(trained.loss)
    assert (found.bytes, found.bits_per_byte) == (None, None)


def test_weights_that_are_not_finite_are_not_shown_as_a_loss(tmp_path: Path) -> None:
    stored = write_base(tmp_path / "base")
    data = build_corpus(tmp_path / "data", documents=3, largest=20)
    (found,) = evaluate(tmp_path / "base", data)
    assert (found.bytes, found.samples > 0) == (None, True)
    model = TransformerInferenceModule.from_checkpoint(stored.path)
    tensors = list(model.module.global_tensors())
    with torch.no_grad():
        tensors[0].parts[0][1].fill_(math.nan)
    Checkpointer(tmp_path / "broken").save(1, tensors, stored.manifest.scalars)
    with pytest.raises(
        DataRefusedError, match=r"data: the loss of .*global_step1 is nan; the weights are not finite, or too large"
    ):
        evaluate(tmp_path / "broken", data)
