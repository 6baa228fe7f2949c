"""Read, compare and cast checkpoints without a model, in whatever layout they were saved."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from scaling.core.boxes import Box, GlobalTensor, whole
from scaling.core.checkpoint import reader as readers
from scaling.core.checkpoint.checkpointer import Checkpointer
from scaling.core.checkpoint.reader import CheckpointReader, Difference, cast, differences
from scaling.core.checkpoint.search import StoredCheckpoint, find_newest
from scaling.core.errors import CheckpointError, StorageError
from tests.core.checkpoint.virtual import Cut, global_state, loads_exactly, save_cut


def stored(directory: Path, tensors: dict[str, Tensor], step: int = 1) -> StoredCheckpoint:
    table = [GlobalTensor(key, tuple(value.shape), [(whole(value.shape), value)]) for key, value in tensors.items()]
    Checkpointer(directory).save(step, table, {"note": 1})
    return find_newest(directory).require()


def test_a_tensor_or_a_part_of_it_is_read_by_name(tmp_path: Path) -> None:
    state = global_state()
    save_cut(tmp_path, 1, Cut(pipe=2, data=2, model=2, zero=True), state)
    with CheckpointReader(find_newest(tmp_path).require()) as reader:
        for name, tensor in state.items():
            assert torch.equal(reader.read(name), tensor)
        box = Box((3, 1), (7, 5))
        assert torch.equal(reader.read("layers.1.up.weight", box), state["layers.1.up.weight"][3:10, 1:6])
        with pytest.raises(CheckpointError, match="does not hold a tensor named 'nothing'"):
            reader.read("nothing")


def test_differences_are_found_tensor_by_tensor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers, "PIECE_BYTES", 16)
    nan = float("nan")
    a = stored(
        tmp_path / "a",
        {
            "same": torch.ones(5),
            "nan": torch.tensor([nan, 1.0]),
            "values": torch.tensor([1.0, 2.0, -4.0, 0.0, 0.0]),
            "infinite": torch.tensor([nan, 1.0]),
            "type": torch.ones(2),
            "shape": torch.ones(2),
            "first": torch.ones(2),
            "integers": torch.tensor([1, 2]),
        },
    )
    b = stored(
        tmp_path / "b",
        {
            "same": torch.ones(5),
            "nan": torch.tensor([nan, 1.0]),
            "values": torch.tensor([1.0, 2.5, -4.0, 0.0, 1e-3]),
            "infinite": torch.tensor([0.0, 1.0]),
            "type": torch.ones(2).bfloat16(),
            "shape": torch.ones(3),
            "second": torch.ones(2),
            "integers": torch.tensor([1, 4]),
        },
    )
    found = {difference.name: difference for difference in differences(a, b)}
    assert {name for name, difference in found.items() if difference.is_equal} == {"same", "nan"}
    assert found["values"] == Difference("values", "", 2, 0.5, 1.0)
    assert found["infinite"] == Difference("infinite", "", 1, float("inf"), float("inf"))
    assert found["type"] == Difference("type", "F32 in the first, BF16 in the second")
    assert found["shape"].note == "[2] and [3]"
    assert found["first"].note == "only in the first, [2]"
    assert found["second"].note == "only in the second, [2]"
    assert found["integers"] == Difference("integers", "", 1, 2.0, 0.5)


def test_the_layout_makes_no_difference(tmp_path: Path) -> None:
    state = global_state()
    for name, cut in (("a", Cut(model=2)), ("b", Cut(pipe=2, data=2, zero=True))):
        save_cut(tmp_path / name, 1, cut, state)
    a, b = (find_newest(tmp_path / name).require() for name in ("a", "b"))
    assert all(difference.is_equal for difference in differences(a, b))


def test_casting_rounds_the_models_weights_and_drops_the_optimizer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = global_state()
    save_cut(tmp_path / "a", 4, Cut(data=2, model=2, zero=True), state)
    monkeypatch.setattr(readers, "PIECE_BYTES", 64)
    path = cast(find_newest(tmp_path / "a").require(), tmp_path / "b", torch.bfloat16)
    assert path == tmp_path / "b" / "global_step4"
    found = find_newest(tmp_path / "b").require()
    assert found.manifest.scalars == {"step": 4, "rank": 0}
    assert {entry.dtype for entry in found.manifest.tensors.values()} == {"BF16"}
    with CheckpointReader(found) as reader:
        for name, tensor in state.items():
            assert (name in found.manifest.tensors) == (not name.startswith("optimizer."))
            if name in found.manifest.tensors:
                assert torch.equal(reader.read(name), tensor.bfloat16())
    with pytest.raises(CheckpointError, match="exists already"):
        cast(find_newest(tmp_path / "a").require(), tmp_path / "b", torch.bfloat16)


def test_casting_leaves_integers_alone(tmp_path: Path) -> None:
    source = stored(tmp_path / "a", {"w": torch.ones(2), "ids": torch.tensor([2**40])})
    cast(source, tmp_path / "b", torch.float16)
    with CheckpointReader(find_newest(tmp_path / "b").require()) as reader:
        assert reader.read("ids").tolist() == [2**40]
        assert reader.read("w").dtype == torch.float16


def test_casting_onto_a_full_disk_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = stored(tmp_path / "a", {"w": torch.ones(2)})
    monkeypatch.setenv("SCALING_FAULT", "save.mid_data:*=enospc")
    with pytest.raises(StorageError, match="No space left"):
        cast(source, tmp_path / "b", torch.float16)
    assert list((tmp_path / "b").iterdir()) == []


def test_a_cast_checkpoint_loads_in_any_layout(tmp_path: Path) -> None:
    state = {name: tensor for name, tensor in global_state().items()}
    save_cut(tmp_path / "a", 1, Cut(), state)
    path = cast(find_newest(tmp_path / "a").require(), tmp_path / "b", torch.float64)
    assert find_newest(path).require().manifest.tensors["layers.0.up.weight"].dtype == "F64"
    assert loads_exactly(tmp_path / "a", Cut(pipe=2), state)


def test_the_reader_in_the_documentation_works_without_this_library(tmp_path: Path) -> None:
    text = (Path(__file__).parents[3] / "docs" / "checkpoint_format.md").read_text()
    code = text.split("```python\n")[1].split("```")[0]
    names: dict[str, Any] = {}
    exec(code, names)
    state = global_state()
    for step, packed in enumerate((False, True)):
        save_cut(tmp_path, step, Cut(data=2, model=2, zero=True), state, packed=packed)
        for name, tensor in state.items():
            found = names["read"](tmp_path / f"global_step{step}", name)
            assert torch.equal(torch.from_numpy(found), tensor.reshape(found.shape))
