"""What is loaded comes back bit for bit; what does not fit is named in full, and nothing is overwritten."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from scaling.core.boxes import Box, GlobalTensor
from scaling.core.checkpoint.checkpointer import Checkpointer
from scaling.core.checkpoint.communicator import Communicator
from scaling.core.checkpoint.files import TensorFile, byte_view
from scaling.core.checkpoint.folders import Retention
from scaling.core.checkpoint.manifest import Part
from scaling.core.errors import CheckpointError, ConfigError, StorageError
from tests.core.checkpoint.virtual import (
    Cut,
    RankState,
    global_state,
    one,
    outcomes_on_ranks,
    part,
    save_cut,
)
from tests.distributed import run_distributed


def test_tensors_of_every_type_and_odd_shape_survive(tmp_path: Path) -> None:
    types = [torch.bool, torch.uint8, torch.int16, torch.int64, torch.float16, torch.bfloat16, torch.float64]
    types += [torch.complex64, torch.float8_e4m3fn, torch.uint16]
    tensors = {f"t{index}": torch.arange(7).to(dtype) for index, dtype in enumerate(types)}
    tensors |= {"scalar": torch.tensor(3.5), "empty": torch.zeros(0, 4), "transposed": torch.randn(3, 5).t()}
    Checkpointer(tmp_path).save(1, [one(key, tensor) for key, tensor in tensors.items()], {})
    copies = {key: torch.zeros_like(tensor) for key, tensor in tensors.items()}
    Checkpointer(None).load(tmp_path, [one(key, tensor) for key, tensor in copies.items()])
    for key, tensor in tensors.items():
        assert byte_view(copies[key]) == byte_view(tensor), key


def test_not_a_number_and_negative_zero_keep_their_bits(tmp_path: Path) -> None:
    bits = torch.tensor([0x7FC00001, 0x7F800000, -(2**31), 1], dtype=torch.int32)
    Checkpointer(tmp_path).save(1, [one("w", bits.view(torch.float32))], {})
    found = torch.zeros(4)
    Checkpointer(None).load(tmp_path, [one("w", found)])
    assert torch.equal(found.view(torch.int32), bits)


def test_parameters_are_written_in_place_and_types_convert(tmp_path: Path) -> None:
    Checkpointer(tmp_path).save(1, [one("w", torch.tensor([1.0, 2.0009765625]))], {})
    parameter = torch.nn.Parameter(torch.zeros(2, dtype=torch.bfloat16))
    address = parameter.data_ptr()
    Checkpointer(None).load(tmp_path, [one("w", parameter)])
    assert parameter.tolist() == [1.0, 2.0]
    assert parameter.data_ptr() == address


def test_all_differences_are_reported_together_and_nothing_is_overwritten(tmp_path: Path) -> None:
    Checkpointer(tmp_path).save(
        1, [one("same", torch.ones(2)), one("shape", torch.ones(2, 3)), one("only.stored", torch.ones(1))], {}
    )
    held = [
        [one("same", torch.zeros(2)), one("shape", torch.zeros(3, 2)), one("only.wanted.a", torch.zeros(4))],
        [one("same", torch.zeros(2, dtype=torch.int32)), one("only.wanted.b", torch.zeros(5, 5))],
    ]
    outcomes = outcomes_on_ranks(
        2, lambda ranks: Checkpointer(None, communicator=ranks).load(tmp_path, held[ranks.rank])
    )
    assert str(outcomes[0]) == str(outcomes[1])
    for line in (
        "2 missing in the checkpoint",
        "only.wanted.a [4]",
        "only.wanted.b [5, 5]",
        "1 in the checkpoint but not in the model",
        "only.stored [1]",
        "2 of another shape or type (trainer.ignore_keys_in_checkpoint, and allow them to be missing)",
        "shape stored [2, 3], wanted [3, 2]",
        "same stored as F32, wanted as torch.int32",
    ):
        assert line in str(outcomes[0]), line
    assert held[0][0].parts[0][1].tolist() == [0, 0]


def test_of_many_differences_the_first_ten_of_each_kind_are_named(tmp_path: Path) -> None:
    names = [f"t{index:02}" for index in range(25)]
    Checkpointer(tmp_path).save(1, [one(name, torch.ones(2)) for name in names], {})
    with pytest.raises(CheckpointError) as raised:
        Checkpointer(None).load(tmp_path, [one(name, torch.ones(3)) for name in names])
    said = str(raised.value).splitlines()
    assert said[1].startswith("  25 of another shape or type")
    assert [line.split()[0] for line in said[2:-1]] == names[:10]
    assert said[-1] == "    and 15 more"


def test_differences_can_be_allowed_by_regular_expression(tmp_path: Path) -> None:
    Checkpointer(tmp_path).save(1, [one("a", torch.ones(2)), one("b", torch.ones(2)), one("old.c", torch.ones(2))], {})
    a, b, new = torch.zeros(2), torch.zeros(2), torch.zeros(2)
    wanted = [one("a", a), one("b", b), one("new.d", new)]
    load = Checkpointer(None).load
    with pytest.raises(CheckpointError, match=r"new\.d"):
        load(tmp_path, wanted, allowed_unexpected=["^old"])
    with pytest.raises(CheckpointError, match=r"1 missing.*\n    b \[2\]"):
        load(tmp_path, wanted, allowed_missing=["new"], allowed_unexpected=["c$"], ignore=["^b$"])
    loaded = load(tmp_path, wanted, allowed_missing=["new", "^b"], allowed_unexpected=["c$"], ignore=["^b$"])
    assert (a.tolist(), b.tolist(), new.tolist()) == ([1, 1], [0, 0], [0, 0])
    assert loaded.missing == ("b", "new.d")
    assert loaded.unexpected == ("b", "old.c")
    with pytest.raises(ConfigError, match="is not a regular expression"):
        load(tmp_path, wanted, ignore=["("])


def test_a_pattern_for_a_parameter_covers_its_optimizer_tensors(tmp_path: Path) -> None:
    names = ("a", "optimizer.master.a", "optimizer.exp_avg.a")
    Checkpointer(tmp_path).save(1, [one(name, torch.ones(2)) for name in names], {})
    load = Checkpointer(None).load
    held = {name: torch.zeros(2) for name in names}
    loaded = load(tmp_path, [one(*item) for item in held.items()], allowed_missing=["^a$"], ignore=["^a$"])
    assert all(not value.any() for value in held.values())
    assert loaded.missing == tuple(sorted(names))
    new = [one(name.replace("a", "b", 1) if name == "a" else name[:-1] + "b", torch.zeros(2)) for name in names]
    load(tmp_path, new, allowed_missing=["^b$"], allowed_unexpected=["^a$"])


def test_what_is_optional_need_not_be_stored_and_alone_can_be_ignored(tmp_path: Path) -> None:
    Checkpointer(tmp_path).save(1, [one("a", torch.ones(2)), one("b", torch.ones(2))], {})
    held = [{name: torch.zeros(2) for name in names} for names in (("a", "new.c"), ("b", "new.d"))]

    def load(ranks: Communicator) -> object:
        mine = held[ranks.rank]
        optional = {name for name in mine if name != "a"}
        return Checkpointer(None, communicator=ranks).load(
            tmp_path, [one(*item) for item in mine.items()], ignore=["^[ab]$"], optional=optional
        )

    for loaded in outcomes_on_ranks(2, load):
        assert (loaded.missing, loaded.absent, loaded.unexpected) == ((), ("b", "new.c", "new.d"), ("b",))
    assert [value.tolist() for value in held[0].values()] == [[1, 1], [0, 0]]
    assert [value.tolist() for value in held[1].values()] == [[0, 0], [0, 0]]


def test_rows_beyond_those_stored_keep_their_values_where_that_is_allowed(tmp_path: Path) -> None:
    stored = torch.arange(6.0).reshape(3, 2)
    Checkpointer(tmp_path).save(1, [one("table", stored)], {})
    load = Checkpointer(None).load
    found = torch.full((4, 2), -1.0)
    load(tmp_path, [one("table", found)], grown=["^tab"])
    assert torch.equal(found, torch.cat([stored, torch.full((1, 2), -1.0)]))
    cut = [part("table", (5, 2), Box((row, 1), (2, 1))) for row in (2, 3)]  # of ranks that hold one column
    for tensor in cut:
        load(tmp_path, [tensor], grown=["table"])
    assert [tensor.parts[0][1].flatten().tolist() for tensor in cut] == [[5, 0], [0, 0]]
    for shape, patterns in (((4, 2), ["other"]), ((2, 2), ["table"]), ((4, 3), ["table"]), ((4,), ["table"])):
        with pytest.raises(CheckpointError, match=r"1 of another shape or type .*\n    table stored \[3, 2\], wanted"):
            load(tmp_path, [one("table", torch.zeros(shape))], grown=patterns)
    with pytest.raises(ConfigError, match="is not a regular expression"):
        load(tmp_path, [one("table", found)], grown=["("])


@pytest.mark.parametrize("narrow", [torch.bfloat16, torch.float16])
def test_wider_weights_are_read_from_their_masters(tmp_path: Path, narrow: torch.dtype) -> None:
    exact = torch.tensor([1.0009765625, 3.14159274])
    Checkpointer(tmp_path).save(1, [one("w", exact.to(narrow)), one("optimizer.master.w", exact)], {})
    load = Checkpointer(None).load
    for dtype, expected in (
        (torch.float32, exact),
        (torch.float64, exact.double()),
        (narrow, exact.to(narrow)),
    ):
        found = torch.zeros(2, dtype=dtype)
        assert load(tmp_path, [one("w", found)], allowed_unexpected=["master"], masters="optimizer.master.").step == 1
        assert torch.equal(found, expected)
    plain = torch.zeros(2)
    load(tmp_path, [one("w", plain)], allowed_unexpected=["master"])
    assert torch.equal(plain, exact.to(narrow).float())


def test_masters_that_are_not_stored_are_read_from_their_weights(tmp_path: Path) -> None:
    exact = torch.tensor([1.0009765625, 3.14159274])
    Checkpointer(tmp_path).save(1, [one("w", exact)], {})
    weight, master = torch.zeros(2, dtype=torch.bfloat16), torch.zeros(2)
    load = Checkpointer(None).load
    load(tmp_path, [one("w", weight), one("optimizer.master.w", master)], masters="optimizer.master.")
    assert torch.equal(master, exact)
    assert torch.equal(weight, exact.to(torch.bfloat16))
    new = one("optimizer.master.new", torch.zeros(2))
    with pytest.raises(CheckpointError, match=r"set trainer\.load_optimizer_states to false"):
        load(tmp_path, [new, one("w", weight)], masters="optimizer.master.")


def test_weights_load_alone_and_removed_optimizer_states_are_explained(tmp_path: Path) -> None:
    state = global_state()
    for step in (1, 2):
        save_cut(tmp_path, step, Cut(data=2, zero=True), state, retention=Retention(keep_optimizer_last=1))
    assert not list((tmp_path / "global_step1").glob("*optimizer*"))
    held = RankState(Cut(), 0)
    weights = [tensor for tensor in held.tensors if not tensor.key.startswith("optimizer.")]
    Checkpointer(None).load(tmp_path / "global_step2", weights, allowed_unexpected=[r"^optimizer\."])
    Checkpointer(None).load(tmp_path / "global_step1", weights)
    with pytest.raises(CheckpointError, match="Retention has removed its optimizer states; load") as caught:
        Checkpointer(None).load(tmp_path / "global_step1", held.tensors)
    assert "set trainer.load_optimizer_states to false" in str(caught.value)
    assert len(str(caught.value).splitlines()) == 2  # not one line for each of them


def test_a_box_beyond_the_stored_tensor_is_named(tmp_path: Path) -> None:
    Checkpointer(tmp_path).save(1, [one("w", torch.ones(4))], {})
    for tensor in (part("w", (4,), Box((2,), (4,))), part("w", (4,), Box((2, 0), (1, 1)))):
        with pytest.raises(CheckpointError, match="those elements are nowhere"):
            Checkpointer(None).load(tmp_path, [tensor])


def test_an_error_while_reading_is_a_storage_error_on_all_ranks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = global_state()
    save_cut(tmp_path, 1, Cut(), state)
    found = Checkpointer(None).find(tmp_path).require()
    (found.path / "rank_00000_model_000.safetensors").unlink()

    def load(ranks: Communicator) -> None:
        held = RankState(Cut(pipe=2), ranks.rank)
        wanted = held.tensors if ranks.rank == 0 else []
        Checkpointer(None, communicator=ranks).load(found, wanted, allowed_unexpected=["."])

    outcomes = outcomes_on_ranks(2, load)
    assert [type(outcome) for outcome in outcomes] == [StorageError] * 2
    assert "rank 0" in str(outcomes[1])


def test_an_exception_while_listing_tensors_is_raised_on_all_ranks(tmp_path: Path) -> None:
    Checkpointer(tmp_path).save(1, [one("w", torch.ones(4))], {})

    def wanted(rank: int) -> Iterator[GlobalTensor]:
        yield one("w", torch.zeros(4))
        if rank == 1:
            raise ZeroDivisionError("no tensor today")

    outcomes = outcomes_on_ranks(
        2, lambda ranks: Checkpointer(None, communicator=ranks).load(tmp_path, wanted(ranks.rank))
    )
    assert [type(outcome) for outcome in outcomes] == [CheckpointError] * 2
    assert "rank 1: ZeroDivisionError: no tensor today" in str(outcomes[0])


def test_two_names_of_one_stored_tensor_are_both_filled(tmp_path: Path) -> None:
    Checkpointer(tmp_path).save(1, [one("tied", torch.ones(2))], {})
    first, second = torch.zeros(2), torch.zeros(2)
    Checkpointer(None).load(tmp_path, [one("tied", first), one("tied", second)])
    assert first.tolist() == second.tolist() == [1, 1]


def peak_while_loading(rank: int, world_size: int, directory: Path) -> tuple[int, int]:
    """Load half of the columns of every tensor, in two precisions; return the shard's bytes and the peak above it."""
    boxes = [Box((0, 1024), (1024, 1024)) for _ in range(16)]
    views = [torch.full((1024, 1024), -1.0, dtype=(torch.float32, torch.bfloat16)[index % 2]) for index in range(16)]
    found = [GlobalTensor(f"w{index}", (1024, 2048), [(boxes[index], views[index])]) for index in range(16)]
    before = anonymous_memory()
    seen = [before]
    done = threading.Event()

    def watch() -> None:
        while not done.wait(0.0005):
            seen.append(anonymous_memory())

    watcher = threading.Thread(target=watch)
    watcher.start()
    Checkpointer(None).load(directory, found)
    done.set()
    watcher.join()
    assert all(float(view.min()) == index + 1 for index, view in enumerate(views))
    return sum(view.nbytes for view in views), max(seen) - before


def anonymous_memory() -> int:
    """Return what this process has of its own: without the pages of libraries, which come in as they are first used."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon"))
    return int(line.split()[1]) * 1024


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="only Linux tells how much memory is in use")
def test_loading_needs_little_memory_beyond_the_model(tmp_path: Path) -> None:
    Checkpointer(tmp_path).save(1, [one(f"w{index}", torch.full((1024, 2048), index + 1.0)) for index in range(16)], {})
    ((shard, peak),) = run_distributed(peak_while_loading, 1, tmp_path)
    assert peak <= 1.25 * shard
    assert peak <= 40 * 2**20


def test_a_part_that_cannot_be_read_is_reported_and_no_thread_reads_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files are closed when loading ends: a thread that still read would read what else has that descriptor."""
    names = [f"w{index}" for index in range(40)]
    stored = Checkpointer(tmp_path).save(1, [one(name, torch.ones(4)) for name in names], {})
    assert stored is not None
    found = Checkpointer(None).find(stored).require()
    read, read_part = [], TensorFile.read_part

    def broken(file: TensorFile, part: Part, box: Box, into: torch.Tensor) -> None:
        if part.key == "w1":
            raise OSError(5, "Input/output error")
        read_part(file, part, box, into)
        read.append(part.key)

    monkeypatch.setattr(TensorFile, "read_part", broken)
    with pytest.raises(StorageError, match="Input/output error"):
        Checkpointer(None).load(found, [one(name, torch.zeros(4)) for name in names])
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("read")]
    assert "w1" not in read


def test_memory_of_every_kind_is_filled_in_one_load(tmp_path: Path) -> None:
    """Threads read into some of it, the calling thread converts or scatters the rest."""
    tensors = {f"w{index}": torch.randn(24, 6) for index in range(12)}
    Checkpointer(tmp_path).save(1, [one(name, tensor) for name, tensor in tensors.items()], {})
    kinds = [
        torch.zeros(24, 6),
        torch.zeros(24, 6, dtype=torch.float64),
        torch.zeros(24, 12)[:, ::2],
        torch.nn.Parameter(torch.zeros(24, 6)),
    ]
    found = {name: kinds[index % len(kinds)].clone() for index, name in enumerate(tensors)}
    found |= {name: torch.zeros(24, 12)[:, ::2] for index, name in enumerate(tensors) if index % len(kinds) == 2}
    with torch.inference_mode():
        found["w1"] = torch.zeros(24, 6, dtype=torch.float64)
        Checkpointer(None).load(tmp_path, [one(name, tensor) for name, tensor in found.items()])
    for name, tensor in tensors.items():
        assert torch.equal(found[name].float(), tensor), name
