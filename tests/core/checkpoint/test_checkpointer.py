from __future__ import annotations

import json
import logging
import os
import threading
import time
from pathlib import Path

import pytest
import torch
from torch import Tensor

from scaling.core import faults
from scaling.core.checkpoint import save as saving
from scaling.core.checkpoint.boxes import Box, GlobalTensor, whole
from scaling.core.checkpoint.checkpointer import Checkpointer
from scaling.core.checkpoint.communicator import Communicator
from scaling.core.checkpoint.files import byte_view
from scaling.core.checkpoint.folders import Retention
from scaling.core.checkpoint.manifest import Json
from scaling.core.checkpoint.share import write_share
from scaling.core.errors import CheckpointError, ConfigError, StorageError
from tests.core.checkpoint.virtual import (
    Cut,
    RankState,
    global_state,
    loads_exactly,
    on_ranks,
    outcomes_on_ranks,
    save_cut,
)

CUTS = [
    Cut(),
    Cut(data=2),
    Cut(data=2, zero=True),
    Cut(data=3, zero=True),
    Cut(model=2),
    Cut(pipe=2),
    Cut(pipe=4, model=2),
    Cut(pipe=2, data=2, model=2, zero=True),
]


def one(key: str, tensor: Tensor, *, owned: bool = True) -> GlobalTensor:
    return GlobalTensor(key, tuple(tensor.shape), [(whole(tensor.shape), tensor)], owned)


def part(key: str, shape: tuple[int, ...], box: Box, *, owned: bool = True) -> GlobalTensor:
    return GlobalTensor(key, shape, [(box, torch.zeros(box.shape))], owned)


def row(length: int, start: int, stop: int, *, owned: bool = True) -> GlobalTensor:
    return part("w", (length,), Box((start,), (stop - start,)), owned=owned)


@pytest.fixture(autouse=True)
def fresh_faults() -> None:
    faults.forget_passages()


@pytest.mark.parametrize("cut", CUTS, ids=str)
def test_what_any_layout_saves_every_layout_loads_bit_for_bit(cut: Cut, tmp_path: Path) -> None:
    state = global_state(3)
    paths = save_cut(tmp_path, 7, cut, state)
    assert set(paths) == {tmp_path / "global_step7"}
    for other in CUTS:
        assert loads_exactly(tmp_path, other, state), other


def test_half_precision_weights_and_their_masters_keep_their_types(tmp_path: Path) -> None:
    state = global_state(5, dtype=torch.bfloat16)
    save_cut(tmp_path, 1, Cut(data=2, model=2, zero=True), state)
    assert loads_exactly(tmp_path, Cut(pipe=2), state)


def test_a_folder_holds_safetensors_and_json_only_and_latest_names_it(tmp_path: Path) -> None:
    save_cut(tmp_path, 12, Cut(data=2, zero=True), global_state())
    assert sorted(os.listdir(tmp_path)) == ["global_step12", "latest"]
    assert (tmp_path / "latest").read_text() == "global_step12"
    assert sorted(os.listdir(tmp_path / "global_step12")) == [
        "manifest.json",
        "rank_00000_model_000.safetensors",
        "rank_00000_optimizer_000.safetensors",
        "rank_00001_optimizer_000.safetensors",
    ]


def test_scalars_come_back_as_rank_0_gave_them(tmp_path: Path) -> None:
    nested: Json = {"a": [1, None, True]}
    scalars: dict[str, Json] = {"step": 3, "rate": 0.1 + 0.2, "state": 2**70, "text": "é\ud800", "nested": nested}
    saved = Checkpointer(tmp_path, information={"layout": "1x1x1"})
    saved.save(3, [one("w", torch.ones(2))], scalars)
    loaded = Checkpointer(None).load(tmp_path, [one("w", torch.zeros(2))])
    assert loaded.scalars == scalars
    assert loaded.step == 3
    information = json.loads((tmp_path / "global_step3/manifest.json").read_text())["information"]
    assert information["layout"] == "1x1x1"
    assert {"saved_at", "scaling", "torch", "python", "ranks"} <= set(information)


def test_scalars_that_json_cannot_hold_are_refused_on_all_ranks(tmp_path: Path) -> None:
    for bad in (float("nan"), object()):
        outcomes = outcomes_on_ranks(
            2,
            lambda ranks, bad=bad: Checkpointer(tmp_path, communicator=ranks).save(1, [], {"loss": bad}),  # type: ignore[misc]
        )
        assert [type(outcome) for outcome in outcomes] == [CheckpointError] * 2
        assert "the scalars cannot be stored as JSON" in str(outcomes[1])
    assert os.listdir(tmp_path) == []


def test_without_a_save_dir_nothing_is_saved(tmp_path: Path) -> None:
    checkpointer = Checkpointer(None)
    assert checkpointer.save(1, [one("w", torch.ones(2))], {}) is None
    assert checkpointer.find().found is None


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


def test_large_tensors_are_cut_so_that_files_stay_bounded(tmp_path: Path) -> None:
    state = global_state()
    save_cut(tmp_path, 1, Cut(data=2, zero=True), state, max_file_bytes=600)
    files = list((tmp_path / "global_step1").glob("*.safetensors"))
    manifest = Checkpointer(None).find(tmp_path).require().manifest
    headers = {path.name: int.from_bytes(path.read_bytes()[:8], "little") + 8 for path in files}
    assert len(files) > 10
    assert all(manifest.files[name].bytes - header <= 600 for name, header in headers.items())
    assert loads_exactly(tmp_path, Cut(model=2), state)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ([[row(4, 0, 4)], [row(4, 0, 4)]], r"w \[4\] has parts that overlap"),
        ([[row(4, 0, 3)], [row(4, 2, 4)]], r"overlap: \[0:3\] in rank_00000"),
        ([[row(4, 0, 2)], []], r"w \[4\] has 2 elements that no part holds, first those at \[2:4\]"),
        ([[row(4, 0, 4, owned=False)], []], r"w \[4\] is on rank 0, but no rank owns it"),
        ([[row(4, 0, 4)], [row(5, 0, 5, owned=False)]], r"w is \[5\] on rank 1"),
        ([[row(4, 0, 2)], [row(6, 2, 4)]], r"w is F32 \[6\] on rank 1"),
        ([[row(4, 2, 5)], []], r"the box \[2:5\] is not within the tensor's shape \[4\]"),
        ([[GlobalTensor("w", (4,), [(Box((0,), (4,)), torch.zeros(3))])], []], r"\[0:4\] comes with a tensor of shape"),
        ([[one("w\n", torch.zeros(1))], []], "cannot be the name of a tensor"),
        ([[one("w", torch.zeros(2)), one("w", torch.zeros(3))], []], r"w is given as \[2\] and as \[3\]"),
        ([[one("w", torch.zeros(2, dtype=torch.complex128))], []], "complex128 cannot be stored"),
    ],
)
def test_tensors_that_do_not_fit_together_are_refused_on_all_ranks(
    tensors: list[list[GlobalTensor]], message: str, tmp_path: Path
) -> None:
    outcomes = outcomes_on_ranks(
        2, lambda ranks: Checkpointer(tmp_path, communicator=ranks).save(1, tensors[ranks.rank], {})
    )
    for outcome in outcomes:
        with pytest.raises(CheckpointError, match=message):
            raise outcome
    assert os.listdir(tmp_path) == []


def test_an_exception_while_collecting_tensors_is_voted_on(tmp_path: Path) -> None:
    def tensors(rank: int) -> list[GlobalTensor]:
        return [one("w", torch.zeros(2), owned=rank == 0)]

    def broken(rank: int):  # type: ignore[no-untyped-def]
        yield from tensors(rank)
        if rank == 1:
            raise ZeroDivisionError("no tensor today")

    outcomes = outcomes_on_ranks(
        2, lambda ranks: Checkpointer(tmp_path, communicator=ranks).save(1, broken(ranks.rank), {})
    )
    assert all(
        isinstance(outcome, StorageError) and "rank 1: ZeroDivisionError" in str(outcome) for outcome in outcomes
    )


POINTS = ["before_data", "mid_data", "after_data", "before_manifest", "mid_manifest", "before_rename"]


@pytest.mark.parametrize("action", ["enospc", "eio", "raise"])
@pytest.mark.parametrize(
    ("point", "rank"), [*((point, 0) for point in POINTS), ("before_data", 1), ("mid_data", 1), ("after_data", 1)]
)
def test_a_failing_rank_fails_the_save_on_all_and_leaves_the_previous_one_alone(
    action: str, point: str, rank: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut, old, new = Cut(data=2, zero=True), global_state(1), global_state(2)
    save_cut(tmp_path, 1, cut, old)
    before = sorted(path.name for path in tmp_path.rglob("*"))

    def twice(ranks: Communicator) -> tuple[Exception | None, Path | None]:
        held = RankState(cut, ranks.rank).fill(new)
        checkpointer = Checkpointer(tmp_path, communicator=ranks)
        first = None
        try:
            checkpointer.save(2, held.tensors, {})
        except StorageError as error:
            first = error
            ranks.broadcast(None)
            if ranks.rank == 0:
                assert sorted(path.name for path in tmp_path.rglob("*")) == before
            assert checkpointer.failures == 1
        again = checkpointer.save(2, held.tensors, {})
        assert checkpointer.failures == 0
        return first, again

    monkeypatch.setenv("SCALING_FAULT", f"save.{point}@{rank}=" + action)
    for error, path in on_ranks(2, twice):
        assert isinstance(error, StorageError)
        assert "step 2 was not saved" in str(error)
        assert "injected" in str(error)
        assert path == tmp_path / "global_step2"
    assert loads_exactly(tmp_path / "global_step1", Cut(), old)
    assert loads_exactly(tmp_path, Cut(), new)


@pytest.mark.parametrize("point", ["after_rename", "during_retention"])
@pytest.mark.parametrize("rank", [0, 1])
def test_a_failure_after_the_rename_does_not_unsave(
    point: str, rank: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("SCALING_FAULT", f"save.{point}@{rank}=eio")
    with caplog.at_level(logging.WARNING):
        assert save_cut(tmp_path, 1, Cut(data=2), global_state()) == [tmp_path / "global_step1"] * 2
    assert "injected" in caplog.text
    assert loads_exactly(tmp_path, Cut(), global_state())


def test_a_directory_that_cannot_be_made_is_a_storage_error_on_all_ranks(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    outcomes = outcomes_on_ranks(
        2, lambda ranks: Checkpointer(tmp_path / "file" / "runs", communicator=ranks).save(1, [], {})
    )
    assert [type(outcome) for outcome in outcomes] == [StorageError] * 2
    assert "rank 0, 1" in str(outcomes[1])
    assert (tmp_path / "file").read_text() == "in the way"


def test_saving_a_step_again_replaces_it(tmp_path: Path) -> None:
    for seed in (1, 2):
        save_cut(tmp_path, 5, Cut(data=2, zero=True), global_state(seed))
    assert loads_exactly(tmp_path, Cut(), global_state(2))
    assert sorted(os.listdir(tmp_path)) == ["global_step5", "latest"]


def test_a_damaged_checkpoint_is_passed_over_for_an_older_one_with_the_reason(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    save_cut(tmp_path, 1, Cut(data=2, zero=True), global_state(1))
    save_cut(tmp_path, 2, Cut(data=2, zero=True), global_state(2))
    victim = tmp_path / "global_step2" / "rank_00001_optimizer_000.safetensors"
    data = bytearray(victim.read_bytes())
    data[-1] ^= 1
    victim.write_bytes(data)
    (tmp_path / "global_step3").mkdir()

    def search(ranks: Communicator) -> tuple[int, list[tuple[str, str]]]:
        found = Checkpointer(tmp_path, communicator=ranks).find()
        return found.require().step, [(rejected.path.name, rejected.reason) for rejected in found.rejected]

    results = on_ranks(3, search)
    assert results[0] == results[1] == results[2]
    step, rejected = results[0]
    assert step == 1
    assert [name for name, _ in rejected] == ["global_step3", "global_step2"]
    assert "not a complete checkpoint" in rejected[0][1]
    assert (
        "rank_00001_optimizer_000.safetensors: the data of optimizer.exp_avg_sq.layers.3.norm.weight" in rejected[1][1]
    )
    assert "rejected the checkpoint" in caplog.text
    with pytest.raises(CheckpointError, match="is complete and intact"):
        Checkpointer(None).load(tmp_path / "global_step2", [])


def test_an_absent_directory_holds_no_checkpoint(tmp_path: Path) -> None:
    search = Checkpointer(tmp_path / "nowhere").find()
    assert (search.found, search.rejected) == (None, ())
    with pytest.raises(CheckpointError, match="there is no checkpoint in"):
        search.require()


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
        "shape stored [2, 3], wanted [3, 2]",
        "same stored as F32, wanted as torch.int32",
    ):
        assert line in str(outcomes[0]), line
    assert held[0][0].parts[0][1].tolist() == [0, 0]


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


def test_weights_load_alone_and_removed_optimizer_states_are_explained(tmp_path: Path) -> None:
    state = global_state()
    for step in (1, 2):
        save_cut(tmp_path, step, Cut(data=2, zero=True), state, retention=Retention(keep_optimizer_last=1))
    assert not list((tmp_path / "global_step1").glob("*optimizer*"))
    held = RankState(Cut(), 0)
    weights = [tensor for tensor in held.tensors if not tensor.key.startswith("optimizer.")]
    Checkpointer(None).load(tmp_path / "global_step2", weights, allowed_unexpected=[r"^optimizer\."])
    Checkpointer(None).load(tmp_path / "global_step1", weights)
    with pytest.raises(CheckpointError, match=r"Retention has removed what starts with optimizer\."):
        Checkpointer(None).load(tmp_path / "global_step1", held.tensors)


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


def test_two_names_of_one_stored_tensor_are_both_filled(tmp_path: Path) -> None:
    Checkpointer(tmp_path).save(1, [one("tied", torch.ones(2))], {})
    first, second = torch.zeros(2), torch.zeros(2)
    Checkpointer(None).load(tmp_path, [one("tied", first), one("tied", second)])
    assert first.tolist() == second.tolist() == [1, 1]


@pytest.mark.parametrize("cut", [Cut(), Cut(data=2, zero=True)], ids=str)
def test_a_save_in_the_background_keeps_the_values_of_the_moment(cut: Cut, tmp_path: Path) -> None:
    states = [global_state(seed) for seed in range(3)]

    def rank(ranks: Communicator) -> None:
        held = RankState(cut, ranks.rank)
        checkpointer = Checkpointer(tmp_path, communicator=ranks, asynchronous=True)
        for step, state in enumerate(states):
            held.fill(state)
            assert checkpointer.save(step, held.tensors, {}) is None
            held.fill({name: torch.full_like(tensor, 9) for name, tensor in state.items()})
        report = checkpointer.wait()
        assert report is not None
        assert report.path == tmp_path / "global_step2"
        assert checkpointer.wait() is None

    on_ranks(cut.world_size, rank)
    for step, state in enumerate(states):
        assert loads_exactly(tmp_path / f"global_step{step}", Cut(model=2), state)


def test_training_goes_on_while_a_save_is_written_and_no_two_saves_overlap(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    running, most, release = 0, 0, threading.Event()

    def slow(*arguments: object) -> object:
        nonlocal running, most
        running += 1
        most = max(most, running)
        release.wait(5)
        time.sleep(0.05)
        running -= 1
        return write_share(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(saving, "write_share", slow)
    checkpointer = Checkpointer(tmp_path, asynchronous=True)
    checkpointer.save(1, [one("w", torch.ones(2))], {})
    assert not (tmp_path / "global_step1").exists()
    release.set()
    checkpointer.save(2, [one("w", torch.ones(2))], {})
    assert (tmp_path / "global_step1").exists()
    checkpointer.wait()
    assert (tmp_path / "global_step2").exists()
    assert most == 1


def test_a_failed_save_in_the_background_is_logged_counted_and_retried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("SCALING_FAULT", "save.mid_data:1=enospc,save.mid_data:2=raise")
    checkpointer = Checkpointer(tmp_path, asynchronous=True)
    tensors = [one("w", torch.ones(2))]
    checkpointer.save(1, tensors, {})
    checkpointer.save(2, tensors, {})
    assert "step 1 was not saved: rank 0: [Errno 28]" in caplog.text
    assert checkpointer.failures == 1
    with pytest.raises(StorageError, match="step 2 was not saved"):
        checkpointer.wait()
    assert checkpointer.failures == 2
    checkpointer.save(3, tensors, {})
    report = checkpointer.wait()
    assert report is not None
    assert (report.step, report.error, checkpointer.failures) == (3, None, 0)
    assert sorted(os.listdir(tmp_path)) == ["global_step3", "latest"]


def test_what_cannot_be_mended_is_raised_by_the_next_call(tmp_path: Path) -> None:
    checkpointer = Checkpointer(tmp_path, asynchronous=True)
    checkpointer.save(1, [part("w", (4,), Box((0,), (2,)))], {})
    with pytest.raises(CheckpointError, match="2 elements that no part holds"):
        checkpointer.save(2, [one("w", torch.ones(4))], {})


def test_old_checkpoints_are_deleted_as_asked(tmp_path: Path) -> None:
    checkpointer = Checkpointer(tmp_path, retention=Retention(keep_last=2, keep_every=4))
    for step in range(1, 8):
        checkpointer.save(step, [one("w", torch.ones(2))], {})
    assert sorted(os.listdir(tmp_path)) == ["global_step4", "global_step6", "global_step7", "latest"]
