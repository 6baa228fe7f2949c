"""Many small tensors, stored together: fewer bytes beside theirs, and otherwise as if each were stored alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from scaling.core.boxes import Box, whole
from scaling.core.checkpoint.checkpointer import Checkpointer
from scaling.core.checkpoint.folders import drop_optimizer
from scaling.core.checkpoint.manifest import Manifest
from scaling.core.checkpoint.reader import CheckpointReader, cast, differences
from scaling.core.checkpoint.search import find_newest
from scaling.core.checkpoint.verify import read_manifest
from scaling.core.errors import CheckpointError
from tests.core.checkpoint.test_manifest import sealed
from tests.core.checkpoint.virtual import Cut, global_state, loads_exactly, one, save_cut


@pytest.mark.parametrize("cut", [Cut(), Cut(pipe=2, data=2, model=2, zero=True)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_packed_tensors_load_in_any_layout(tmp_path: Path, cut: Cut, dtype: torch.dtype) -> None:
    state = global_state(3, dtype=dtype)
    save_cut(tmp_path, 1, cut, state, packed=True)
    save_cut(tmp_path, 2, Cut(data=2), state)
    stored, plain = (find_newest(tmp_path / f"global_step{step}").require() for step in (1, 2))
    assert all(part.start is not None for entry in stored.manifest.tensors.values() for part in entry.parts)
    for other in (Cut(), Cut(data=2, model=2, zero=True)):
        assert loads_exactly(stored.path, other, state)
    assert all(found.is_equal for found in differences(stored, plain))
    assert Manifest.decode(stored.manifest.encode()).tensors == stored.manifest.tensors
    drop_optimizer(stored.path)
    weights = read_manifest(stored.path)
    assert weights.weights_digest == stored.manifest.weights_digest
    assert not weights.holds("optimizer.")
    find_newest(stored.path).require()


def test_a_flipped_bit_names_tensors_of_the_pack(tmp_path: Path) -> None:
    small = [one(f"bias.{index}", torch.ones(3)) for index in range(5)]
    large = one("weight", torch.ones(64, 64))
    Checkpointer(tmp_path).save(1, [*small, large], {}, packed=True)
    folder = tmp_path / "global_step1"
    manifest = read_manifest(folder)
    assert [manifest.tensors[name].parts[0].start for name in ("bias.0", "bias.1", "weight")] == [0, 3, None]
    (name,) = manifest.files
    data = bytearray((folder / name).read_bytes())
    data[-2] ^= 4
    (folder / name).write_bytes(data)
    (rejected,) = find_newest(folder).rejected
    assert rejected.reason == f"{name}: the data of one of bias.0, bias.1, bias.2 and 2 more, [0:15] is damaged"


def test_many_small_tensors_take_little_more_than_their_bytes(tmp_path: Path) -> None:
    """As those of a low-rank update of 4 layers of width 64 at rank 4, the limit for which is documented."""
    names = [
        f"layers.{layer}.self_attention.{name}.lora_lora.{part}"
        for layer in range(4)
        for name in ("query", "key", "value", "dense", "in", "gate", "out")
        for part in "ab"
    ]
    slots = ("", "optimizer.exp_avg.", "optimizer.exp_avg_sq.")
    tensors = [one(slot + name, torch.zeros(64, 4)) for slot in slots for name in names]
    Checkpointer(tmp_path).save(1, tensors, {}, packed=True)
    size = sum(path.stat().st_size for path in (tmp_path / "global_step1").iterdir())
    held = sum(tensor.parts[0][1].nbytes for tensor in tensors)
    assert size - held < 200 * len(tensors)
    assert size - held < 0.05 * held + 48 * 2**10


def test_casting_what_was_trained_on_a_base_packs_it_too(tmp_path: Path) -> None:
    scalars = {"base": None}
    Checkpointer(tmp_path / "a").save(1, [one("gain", torch.ones(3)), one("bias", torch.zeros(2))], scalars)
    written = cast(find_newest(tmp_path / "a").require(), tmp_path / "b", torch.bfloat16)
    stored = find_newest(written).require()
    assert [entry.parts[0].start for entry in stored.manifest.tensors.values()] == [0, 2]  # bias, then gain
    with CheckpointReader(stored) as reader:
        assert reader.read("gain").tolist() == [1, 1, 1]


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    folder = tmp_path_factory.mktemp("packed")
    Checkpointer(folder).save(1, [one("a", torch.ones(2, 3)), one("b", torch.ones(4))], {}, packed=True)
    return read_manifest(folder / "global_step1")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("packs"), "there is no pack 0"),
        (lambda t: t.update(packs=7), "expected a list of packs, found int"),
        (lambda t: t["packs"][0].update(file="../x"), "names a file"),
        (lambda t: t["packs"][0].update(file="other.safetensors"), "which the list of files does not have"),
        (lambda t: t["packs"][0].update(sha256="0"), "not a SHA-256 digest"),
        (lambda t: t["tensors"]["b"]["parts"][0].update(pack=-1), "expected a number"),
        (
            lambda t: t["tensors"]["b"]["parts"][0].update(start=5),
            "b is said to be at 5 in packed:F32 of .*, where 6 is",
        ),
        (
            lambda t: t["tensors"]["b"]["parts"][0].update(start=7),
            "b is said to be at 7 in packed:F32 of .*, where 6 is",
        ),
        (lambda t: t["tensors"]["b"].update(dtype="I32"), "with several types or digests"),
        (lambda t: t["tensors"]["b"].update(shape=[5]), ""),  # a longer pack, which the file contradicts
    ],
)
def test_a_manifest_that_lies_about_packs_is_refused(
    packed: Manifest, change: Callable[[dict[str, Any]], object], message: str, tmp_path: Path
) -> None:
    data = sealed(change, packed)
    if message:
        with pytest.raises(CheckpointError, match=message):
            Manifest.decode(data)
        return
    Checkpointer(tmp_path).save(1, [one("a", torch.ones(2, 3)), one("b", torch.ones(4))], {}, packed=True)
    (tmp_path / "global_step1" / "manifest.json").write_bytes(data)
    (rejected,) = find_newest(tmp_path).rejected
    assert "is stored as F32 [10], the manifest says F32 [11]" in rejected.reason


def test_a_part_that_stands_alone_is_not_one_of_a_pack_as_well(packed: Manifest) -> None:
    ((_, b),) = [(name, entry) for name, entry in packed.tensors.items() if name == "b"]
    alone = replace(b.parts[0], box=whole((4,)), start=None)
    lying = replace(packed, tensors={**packed.tensors, "b": replace(b, parts=(alone,))})
    assert any("is said to hold packed:F32 twice" in problem for problem in lying.problems())
    moved = replace(b.parts[0], box=Box((0,), (4,)), sha256="0" * 64)
    lying = replace(packed, tensors={**packed.tensors, "b": replace(b, parts=(moved,))})
    assert any("several types or digests" in problem for problem in lying.problems())
