"""A local tensor is a view of a checkpoint's file exactly where the file has it as it is in memory."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch
from torch import Tensor

from scaling.core.boxes import Box, whole
from scaling.core.checkpoint.checkpointer import Checkpointer
from scaling.core.checkpoint.mapping import Held, Wanted, map_tensors
from scaling.core.checkpoint.search import StoredCheckpoint, find_newest
from tests.core.checkpoint.virtual import one

SHAPE = (32, 16)


def private_bytes() -> int:
    """Return the memory of this process that it shares with nobody and no file."""
    rows = dict(line.split(":") for line in Path("/proc/self/smaps_rollup").read_text().splitlines()[1:])
    return int(rows["Anonymous"].split()[0]) * 1024


def saved(folder: Path, tensors: dict[str, Tensor]) -> StoredCheckpoint:
    Checkpointer(folder).save(1, [one(key, tensor) for key, tensor in tensors.items()], {})
    return find_newest(folder).require()


def of(name: str, box: Box, place: tuple[int, ...] = (0, 0)) -> Held:
    return Held(name, SHAPE, box, place)


def test_rows_columns_and_fused_tensors_are_views(tmp_path: Path) -> None:
    q, k = torch.randn(SHAPE), torch.randn(SHAPE)
    stored = saved(tmp_path, {"odd": torch.randn(3), "q": q, "k": k})
    rows, columns = Box((8, 0), (24, 16)), Box((0, 0), (32, 8))
    wanted = {
        "whole": (Wanted(SHAPE, q.dtype, [of("q", whole(SHAPE))]), q),
        "rows": (Wanted((24, 16), q.dtype, [of("q", rows)]), q[8:]),
        "columns": (Wanted((32, 8), q.dtype, [of("k", columns)]), k[:, :8]),
        "fused": (
            Wanted((64, 16), q.dtype, [of("q", whole(SHAPE)), of("k", whole(SHAPE), (32, 0))]),
            torch.cat([q, k]),
        ),
    }
    found = map_tensors(stored, {name: one for name, (one, _) in wanted.items()})
    for name, (_, values) in wanted.items():
        assert torch.equal(found[name], values), name
        assert found[name].data_ptr() % 64 == 0
    assert len({tensor.untyped_storage().data_ptr() for tensor in found.values()}) == 1


@pytest.mark.parametrize(
    "wanted",
    [
        Wanted(SHAPE, torch.float64, [of("q", whole(SHAPE))]),  # converted
        Wanted((33, 16), torch.float32, [of("q", whole(SHAPE))]),  # padded
        Wanted(SHAPE, torch.float32, [of("absent", whole(SHAPE))]),
        Wanted((33, 16), torch.float32, [Held("q", (33, 16), Box((0, 0), (33, 16)), (0, 0))]),  # grown
        Wanted((64, 16), torch.float32, [of("k", whole(SHAPE)), of("q", whole(SHAPE), (32, 0))]),  # in another order
        Wanted((32, 15), torch.float32, [of("q", Box((0, 1), (32, 15)))]),  # not aligned
        Wanted((3,), torch.float32, [Held("odd", (3,), whole((3,)), (0,)), Held("odd", (3,), whole((3,)), (0,))]),
    ],
    ids=["type", "padding", "absence", "growth", "order", "alignment", "repetition"],
)
def test_what_is_not_in_the_file_as_in_memory_is_no_view(tmp_path: Path, wanted: Wanted) -> None:
    stored = saved(tmp_path, {"odd": torch.randn(3), "q": torch.randn(SHAPE), "k": torch.randn(SHAPE)})
    assert map_tensors(stored, {"wanted": wanted}) == {}


def test_reading_a_view_takes_no_memory_and_writing_to_it_leaves_the_file_alone(tmp_path: Path) -> None:
    shape = (4096, 1024)
    stored = saved(tmp_path, {"table": torch.arange(4096.0).unsqueeze(1).expand(shape)})
    (path,) = (stored.path / name for name in stored.manifest.files)
    digest = hashlib.sha256(path.read_bytes()).digest()
    before = private_bytes()
    wanted = Wanted(shape, torch.float32, [Held("table", shape, whole(shape), (0, 0))])
    view = map_tensors(stored, {"table": wanted})["table"]
    assert float(view.sum(dtype=torch.float64)) == 1024 * 4096 * 4095 / 2
    assert private_bytes() - before < view.nbytes / 4
    view[7] = -1.0
    assert float(view[7, 5]) == -1.0
    assert hashlib.sha256(path.read_bytes()).digest() == digest
