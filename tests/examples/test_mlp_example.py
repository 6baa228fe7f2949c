"""The MNIST example: it learns, alike in every layout, and refuses files that are not MNIST's."""

from __future__ import annotations

import ast
import gzip
import hashlib
import json
import os
import shutil
import struct
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from examples.mlp_example import data
from examples.mlp_example.config import MLPConfig
from examples.mlp_example.data import NO_DIGIT, SUBSET, Digits, download, read_idx
from examples.mlp_example.model import loss
from examples.mlp_example.train import recipe_of, train
from scaling.core import (
    BatchGeometry,
    ConfigError,
    DataError,
    ExitStatus,
    LaunchContext,
    items_of,
    order_of,
    positions_of,
    verify_layout,
)
from scaling.core.logging.setup import close_logging
from tests.distributed import run_distributed
from tests.transformer.small import run_module

EXAMPLE = Path(data.__file__).parent
CONFIG = EXAMPLE / "config.yml"
CUT_IN_TWO = tuple(f"topology.{axis}_parallel_size=2" for axis in ("model", "pipe", "data"))


def trained(rank: int, world_size: int, overrides: Sequence[str]) -> int:
    """Train in a worker as one rank."""
    try:
        return train(MLPConfig.from_yaml(CONFIG, overrides), LaunchContext.from_environment())
    finally:
        close_logging()


def test_it_says_how_it_is_started() -> None:
    usage = "python3 -m examples.mlp_example.run CONFIG [KEY=VALUE ...]"
    ended = run_module("examples.mlp_example.run")
    assert (ended.returncode, ended.stderr) == (2, f"error: name a configuration: {usage}\n")
    helped = run_module("examples.mlp_example.run", "--help")
    assert (helped.returncode, helped.stderr) == (0, "")
    assert helped.stdout.startswith(f"usage: {usage} [--dry-run]\n")


def metrics(log_dir: Path) -> dict[int, dict[str, float]]:
    """Return what a run wrote, by step."""
    found: dict[int, dict[str, float]] = {}
    for line in (log_dir / "metrics.jsonl").read_text().splitlines():
        values = json.loads(line)
        found.setdefault(values.pop("step"), {}).update(values)
    return found


def assert_same(log_dir: Path, other: Path, *, steps: int) -> None:
    """Check that two runs report the same losses and accuracies at every step."""
    ours, theirs = metrics(log_dir), metrics(other)
    assert list(ours) == list(theirs) == list(range(1, steps + 1))
    for step in ours:
        for name in ("training/loss", "training/accuracy", "evaluation/loss", "evaluation/accuracy"):
            assert (name in ours[step]) == (name in theirs[step])
            if name in ours[step]:
                assert theirs[step][name] == pytest.approx(ours[step][name], rel=1e-5), (step, name)


def idx(array: NDArray[np.uint8]) -> bytes:
    """Return an array as an IDX file."""
    return struct.pack(f">4B{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


def write_digits(directory: Path, *, images: int = 3, labels: Sequence[int] = (7, 0, 9), side: int = 28) -> None:
    """Write the training part of a data set."""
    pixels = np.arange(images * side * side, dtype=np.uint64).astype(np.uint8).reshape(images, side, side)
    (directory / "train-images-idx3-ubyte").write_bytes(idx(pixels))
    (directory / "train-labels-idx1-ubyte").write_bytes(idx(np.array(labels, dtype=np.uint8)))


# The configuration


def test_the_configuration_is_valid_in_one_process_and_in_eight() -> None:
    assert MLPConfig.from_yaml(CONFIG).topology.world_size == 1
    assert MLPConfig.from_yaml(CONFIG, CUT_IN_TWO).topology.world_size == 8
    assert MLPConfig.from_str(MLPConfig.from_yaml(CONFIG).to_yaml()) == MLPConfig.from_yaml(CONFIG)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["architecture.hidden_dim=0"], r"architecture\.hidden_dim: is 0; make it a multiple"),
        (["architecture.hidden_dim=127", "topology.model_parallel_size=2"], r"hidden_dim: is 127; .* \(2\)"),
        (["architecture.n_hidden_layers=-1"], r"n_hidden_layers: is -1; .* at least 0"),
        (["topology.pipe_parallel_size=8"], r"n_hidden_layers: is 3; .* at least 5"),
        (["architecture.hiden_dim=64"], r"hidden_dim"),
    ],
)
def test_a_model_that_cannot_be_built_is_refused_before_anything_starts(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        MLPConfig.from_yaml(CONFIG, overrides)


# The data


def test_the_digits_of_the_repository_are_whole_and_held_out_ones_are_not_trained_on() -> None:
    training, held_out = (Digits(SUBSET, part, moving=False) for part in ("train", "t10k"))
    assert (len(training), len(held_out)) == (8500, 1500)
    assert set(training.labels.tolist()) == set(held_out.labels.tolist()) == set(range(10))
    seen = {image.numpy().tobytes() for image in training.images}
    assert len(seen) == 8500
    assert not seen & {image.numpy().tobytes() for image in held_out.images}


@pytest.mark.parametrize("zipped", [False, True])
def test_files_are_read_gzipped_or_not(tmp_path: Path, zipped: bool) -> None:
    write_digits(tmp_path)
    if zipped:
        for path in list(tmp_path.iterdir()):
            path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))
            path.unlink()
    digits = Digits(tmp_path, "train", moving=False)
    image, label = digits[2]
    assert (label.item(), image[1, 1].item(), image[0].sum().item()) == (9, 2 * 28 * 28 % 256, 0)


WHOLE = idx(np.zeros((3, 2, 2), dtype=np.uint8))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        pytest.param(WHOLE[:-1], "27 bytes .* instead of 28", id="too short"),
        pytest.param(WHOLE + b"\0", "29 bytes .* instead of 28", id="too long"),
        pytest.param(WHOLE[:10], "10 bytes", id="header cut"),
        pytest.param(b"", "0 bytes", id="empty"),
        pytest.param(b"\0\0\x0d\x03" + WHOLE[4:], "28 bytes starting with 00000d03", id="of floats"),
        pytest.param(idx(np.zeros((3, 4), np.uint8)), "24 bytes starting with 00000802", id="other dimensions"),
        pytest.param(idx(np.zeros((2, 3, 2), np.uint8)), "28 bytes .* instead of 24", id="other sizes"),
        pytest.param(idx(np.zeros((0, 2, 2), np.uint8)), "16 bytes", id="no items"),
        pytest.param(b"<html>Moved</html>", "18 bytes starting with 3c68746d", id="something else"),
    ],
)
def test_a_file_that_is_not_a_whole_idx_file_of_these_items_is_refused(
    tmp_path: Path, content: bytes, message: str
) -> None:
    (tmp_path / "plain").write_bytes(content)
    (tmp_path / "zipped.gz").write_bytes(gzip.compress(content))
    for name in ("plain", "zipped"):
        with pytest.raises(DataError, match=f"{name}.* is {message}"):
            read_idx(tmp_path / name, 2, 2)


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(None, id="missing"),
        pytest.param(gzip.compress(WHOLE)[:-9], id="cut"),
        pytest.param(WHOLE, id="not an archive"),
        pytest.param(b"\x1f\x8b\x08" + b"\0" * 7 + b"\xff" * 30, id="damaged"),
    ],
)
def test_a_missing_or_damaged_archive_is_refused_by_name(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "images.gz").write_bytes(content)
    with pytest.raises(DataError, match=r"images\.gz cannot be read .*data\.directory"):
        read_idx(tmp_path / "images", 2, 2)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"labels": (7, 0)}, "3 train images, but 2 labels up to 7"),
        ({"labels": (7, 0, 10)}, "labels up to 10"),
        ({"side": 27}, "train-images"),
    ],
)
def test_files_that_do_not_belong_together_are_refused(tmp_path: Path, wrong: dict[str, Any], message: str) -> None:
    write_digits(tmp_path, **wrong)
    with pytest.raises(DataError, match=message):
        Digits(tmp_path, "train", moving=False)


def test_what_fills_up_the_last_batch_counts_neither_in_the_loss_nor_in_the_accuracy(tmp_path: Path) -> None:
    write_digits(tmp_path)
    digits = Digits(tmp_path, "train", moving=False)
    batch = digits.collate([digits[0], digits[1], digits[2]], range(3), [True, True, False])
    assert batch.inputs.shape == (3, 28, 28)
    assert batch.inputs.dtype == torch.float32
    assert batch.inputs.max() == 1.0
    assert batch.targets.tolist() == [7, 0, NO_DIGIT]
    logits = torch.randn(3, 10)
    logits[0, 7] = 10.0
    logits[1, 7] = 10.0
    output = loss(logits, batch.targets)
    torch.testing.assert_close(output.loss_sum, F.cross_entropy(logits[:2], torch.tensor([7, 0]), reduction="sum"))
    assert torch.as_tensor(output.weight) == 2
    assert torch.equal(torch.as_tensor(output.metrics["accuracy"]), torch.tensor(1))


def test_a_moving_image_takes_all_nine_places_by_its_position_in_the_run(tmp_path: Path) -> None:
    write_digits(tmp_path)
    still, moving = (Digits(tmp_path, "train", moving=moves) for moves in (False, True))
    places = moving.collate([moving[1]] * 18, range(18), [True] * 18).inputs
    centre = still.collate([still[1]], [0], [True]).inputs[0]
    torch.testing.assert_close(places[:9], places[9:])
    torch.testing.assert_close(places[4], centre)
    for position in range(9):
        down, right = divmod(position, 3)
        torch.testing.assert_close(places[position], F.pad(centre, (1, 1, 1, 1))[down : down + 28, right : right + 28])
    assert len({place.numpy().tobytes() for place in places}) == 9


def test_an_image_has_the_same_place_in_every_layout() -> None:
    digits = Digits(SUBSET, "train", moving=True)
    order = order_of(digits, key=(42,), shuffle=True)

    def batch(geometry: BatchGeometry) -> torch.Tensor:
        rows = []
        for micro_batch in range(geometry.gradient_accumulation_steps):
            for rank in range(geometry.data_parallel_size):
                positions = positions_of(64, geometry, micro_batch=micro_batch, data_parallel_rank=rank)
                samples = [digits[item] for item in items_of(order, positions)]
                rows.append(digits.collate(samples, positions, [True] * len(samples)).inputs)
        return torch.cat(rows)

    assert torch.equal(batch(BatchGeometry(1, 32, 1)), batch(BatchGeometry(2, 4, 4)))


# The download


@pytest.fixture
def mirrors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Let the download come from two folders, the second of which has what is expected."""
    folders = [tmp_path / "first", tmp_path / "second"]
    for folder in folders:
        folder.mkdir()
    contents = {name: f"contents of {name}".encode() for name in data.SHA256}
    for name, content in contents.items():
        (folders[1] / name).write_bytes(content)
    monkeypatch.setattr(data, "MIRRORS", tuple(folder.as_uri() for folder in folders))
    digests = {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}
    monkeypatch.setattr(data, "SHA256", digests)
    return folders


def test_a_download_takes_the_first_mirror_that_has_the_file_unchanged(tmp_path: Path, mirrors: list[Path]) -> None:
    first, second = mirrors
    for name in list(data.SHA256)[:2]:
        (first / name).write_bytes(b"something else")
    download(tmp_path / "a" / "target")
    assert all((tmp_path / "a" / "target" / name).read_bytes() == (second / name).read_bytes() for name in data.SHA256)


def test_what_is_there_is_not_downloaded_again_and_what_is_damaged_is(tmp_path: Path, mirrors: list[Path]) -> None:
    target, names = tmp_path / "target", list(data.SHA256)
    download(target)
    (target / names[0]).write_bytes(b"damaged")
    for name in names[1:]:
        (mirrors[1] / name).unlink()
    download(target)
    assert (target / names[0]).read_bytes() == (mirrors[1] / names[0]).read_bytes()


def test_without_a_network_the_message_names_the_file_the_mirrors_and_what_to_do(
    tmp_path: Path, mirrors: list[Path]
) -> None:
    name = next(iter(data.SHA256))
    (mirrors[0] / name).write_bytes(b"something else")
    (mirrors[1] / name).unlink()
    with pytest.raises(DataError, match=rf"{name} cannot be had .*first: .*another file.*second: .*by hand") as caught:
        download(tmp_path / "target")
    assert str(tmp_path / "target") in str(caught.value)
    assert not (tmp_path / "target" / name).exists()


# The training


@pytest.mark.slow
def test_a_few_steps_give_the_same_losses_in_one_process_and_in_eight(tmp_path: Path) -> None:
    common = ["trainer.train_iterations=6", "trainer.eval_interval=6", "topology.micro_batch_size=32"]
    run_distributed(trained, 1, [*common, f"logger.log_dir={tmp_path / 'one'}"])
    statuses = run_distributed(trained, 8, [*common, *CUT_IN_TWO, f"logger.log_dir={tmp_path / 'eight'}"])
    assert statuses == [ExitStatus.DONE] * 8
    assert_same(tmp_path / "one", tmp_path / "eight", steps=6)
    losses = [values["training/loss"] for values in metrics(tmp_path / "one").values()]
    assert losses[-1] < losses[0]


def test_what_it_trains_can_be_proved_to_be_the_same_in_another_layout() -> None:
    config = MLPConfig.from_yaml(CONFIG, ["topology.model_parallel_size=2"])
    report = verify_layout(recipe_of(config, SUBSET), config.topology, steps=2, timeout=120)
    assert report.agrees, report


def run_example(
    *overrides: str, repository: Path = EXAMPLE.parents[1], **environment: str
) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "examples.mlp_example.run", str(CONFIG), *overrides]
    return subprocess.run(
        command,
        cwd=repository,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


def test_the_command_refuses_a_wrong_configuration_with_a_message() -> None:
    done = run_example("architecture.hidden_dim=0", "trainer.seeds=1")
    assert done.returncode == ExitStatus.USER_INPUT
    assert "hidden_dim" in done.stderr
    assert "seeds" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_script_of_another_repository_trains(tmp_path: Path) -> None:
    shutil.copytree(EXAMPLE, tmp_path / "examples" / "mlp_example")
    done = run_example(
        "runner.script=examples/mlp_example/train.py",
        "trainer.train_iterations=2",
        "trainer.eval_interval=null",
        f"logger.log_dir={tmp_path / 'log'}",
        "topology.device=cpu",
        repository=tmp_path,
        PYTHONPATH=str(EXAMPLE.parents[1] / "src"),
    )
    assert done.returncode == 0, done.stderr
    assert list(metrics(tmp_path / "log")) == [1, 2]


@pytest.mark.slow
@pytest.mark.timeout(600)  # a minute on two idle cores
def test_the_command_learns_the_digits_alike_in_one_process_and_in_eight(tmp_path: Path) -> None:
    for name, overrides in (("one", ()), ("eight", CUT_IN_TWO)):
        done = run_example(f"logger.log_dir={tmp_path / name}", *overrides)
        assert done.returncode == 0, done.stderr
        assert "accuracy 0.9" in done.stderr
    assert_same(tmp_path / "one", tmp_path / "eight", steps=300)
    assert metrics(tmp_path / "one")[300]["evaluation/accuracy"] >= 0.95


# What the example promises to a reader


def test_it_is_short() -> None:
    files = [*EXAMPLE.glob("*.py"), CONFIG]
    lines = [line for path in files for line in path.read_text().splitlines() if line.strip()]
    assert len(lines) < 250


def test_it_imports_nothing_but_the_core_torch_and_numpy() -> None:
    for path in EXAMPLE.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            match node:
                case ast.Import():
                    modules = [alias.name for alias in node.names]
                case ast.ImportFrom():
                    assert node.level == 0, path
                    modules = [node.module or ""]
                case _:
                    continue
            for module in modules:
                top = module.split(".")[0]
                allowed = top in ("torch", "numpy", *sys.stdlib_module_names) or module == "scaling.core"
                assert allowed or module.startswith("examples.mlp_example."), f"{path.name} imports {module}"
