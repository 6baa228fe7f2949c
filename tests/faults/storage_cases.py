"""Group S: kills at every point of a save, disks that fail, and checkpoints that were damaged afterwards."""

from __future__ import annotations

import errno
import functools
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from tests.faults.engine import Scene, Settings
from tests.faults.matrix import Case, End, Refuse, Survive

POINTS = (
    *("before_data", "mid_data", "after_data", "before_manifest", "mid_manifest", "before_rename"),
    *("after_rename", "during_retention"),
)
KILLED = 128 + signal.SIGKILL
KEEP_ONE: Settings = {"trainer.keep_last_checkpoints": 1}
ASYNCHRONOUS: Settings = {"trainer.save_async": True}
MODEL = "rank_00000_model_000.safetensors"
OPTIMIZER = "rank_00001_optimizer_000.safetensors"


def cases() -> Iterator[Case]:
    """Yield the 34 cases."""
    for point in POINTS:
        for rank in (0, 1):
            yield Case(
                "S", f"SIGKILL of rank {rank} at save.{point}", Survive(), partial(killed_in_a_save, point, rank)
            )
    yield Case("S", "EIO on rank 1", Survive(), partial(failing_disk, "save.mid_data@1=eio"))
    yield Case("S", "ENOSPC: a full file system", Survive(), full_disk)
    for name, ranks in {"rank 0": (0,), "rank 1": (1,), "both ranks": (0, 1)}.items():
        yield Case("S", f"EFBIG on {name}", Survive(), partial(file_too_big, ranks))
    for point in ("mid_data", "after_data"):
        yield Case("S", f"SIGKILL at save.{point} of the same step again", Survive(), partial(killed_again, point))
    for name, damage in DAMAGE.items():
        yield Case("S", name, Survive(), partial(damaged, damage))
    yield Case("S", "read-only file system", Refuse(74, "Read-only file system|Permission denied"), read_only)
    hanging = "save.mid_data@*=hang,step.after_optimizer@*:4=kill"
    yield Case("S", "SIGKILL of the trainer during an asynchronous save", Survive(), partial(killed_async, hanging))
    writer = "save.mid_data@1=kill"
    yield Case("S", "SIGKILL out of the writing thread", Survive(), partial(killed_async, writer))
    yield Case("S", "exception in the writing thread", Survive(), failing_writer)


def killed_in_a_save(point: str, rank: int, scene: Scene) -> End:
    """Saving step 4 removes step 2, so every point of the protocol is passed."""
    scene.resume_from(2)
    end = scene.run(KEEP_ONE, fault=f"save.{point}@{rank}=kill")
    scene.require(end.status == KILLED, f"not killed, but status {end.status}: {end.message}")
    return scene.finish(KEEP_ONE)


def failing_disk(fault: str, scene: Scene) -> End:
    """The save of step 4 fails; training goes on, and the next save succeeds."""
    scene.resume_from(2)
    end = scene.run(fault=fault)
    scene.require(not scene.step(4).exists() and scene.step(6).exists(), "step 4 must be lost, and only it")
    return end


def full_disk(scene: Scene) -> End:
    """No save fits any more; with space, the run is continued from the checkpoint before."""
    if not can_mount():
        scene.resume_from(2)
        require_no_space(scene.run(fault="save.mid_data@*:*=enospc"), scene)
        return scene.finish()
    with small_disk(scene.save_dir, "1m"):
        scene.resume_from(2)
        filler = fill(scene.save_dir)
        require_no_space(scene.run(), scene)
        filler.unlink()
        return scene.finish()


def require_no_space(end: End, scene: Scene) -> None:
    """The last save, which nobody would try again, ends the run with the reason."""
    as_declared = end.status == 74 and "step 6 was not saved" in end.message and "No space left" in end.message
    scene.require(as_declared, f"status {end.status}: {end.message}")


def file_too_big(ranks: tuple[int, ...], scene: Scene) -> End:
    """Some ranks cannot write their files; without the limit, the run is continued from the checkpoint before."""
    scene.resume_from(2)
    end = scene.run(file_limits=dict.fromkeys(ranks, 4096))
    scene.require(
        end.status == 74 and f"rank {', '.join(map(str, ranks))}: " in end.message and "File too large" in end.message,
        f"status {end.status}: {end.message}",
    )
    return scene.finish()


def killed_again(point: str, scene: Scene) -> End:
    """Step 4 is there but damaged, so it is trained and saved again; that save is killed."""
    scene.resume_from(2, 4)
    flip(scene.step(4) / MODEL, -9)
    end = scene.run(fault=f"save.{point}@1=kill")
    scene.require(end.status == KILLED, f"not killed, but status {end.status}: {end.message}")
    return scene.finish()


def damaged(damage: Callable[[Path, Path], object], scene: Scene) -> End:
    """The newest checkpoint is damaged; the run continues from the one before (or from it, where it is intact)."""
    scene.resume_from(2, 4)
    damage(scene.step(4), scene.step(2))
    return scene.finish()


def read_only(scene: Scene) -> End:
    """The reason is named, and nothing is changed."""
    if not can_mount():
        scene.resume_from(2)
        scene.watch()
        scene.save_dir.chmod(0o555)
        try:
            return scene.run()
        finally:
            scene.save_dir.chmod(0o755)
    with small_disk(scene.save_dir, "4m"):
        scene.resume_from(2)
        scene.watch()
        subprocess.run(["mount", "-o", "remount,ro", str(scene.save_dir)], check=True)
        end = scene.run()
        left = scene.written()
    scene.require(not left, f"written: {left}")
    scene.watch()
    return end


def killed_async(fault: str, scene: Scene) -> End:
    """The process dies while its thread writes."""
    scene.resume_from(2)
    end = scene.run(ASYNCHRONOUS, fault=fault)
    scene.require(end.status == KILLED, f"not killed, but status {end.status}: {end.message}")
    scene.require(not scene.step(4).exists(), "the save had been finished before the kill")
    return scene.finish(ASYNCHRONOUS)


def failing_writer(scene: Scene) -> End:
    """The save in the background fails; training goes on, and the next save succeeds."""
    scene.resume_from(2)
    end = scene.run(ASYNCHRONOUS, fault="save.mid_data@1=raise")
    scene.require(not scene.step(4).exists() and scene.step(6).exists(), "step 4 must be lost, and only it")
    return end


def flip(path: Path, place: int) -> None:
    """Flip one bit of a byte."""
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


def rewrite(path: Path, change: Callable[[bytes], bytes]) -> None:
    """Replace the content of a file."""
    path.write_bytes(change(path.read_bytes()))


DAMAGE: dict[str, Callable[[Path, Path], object]] = {
    "truncated file": lambda newest, older: os.truncate(newest / OPTIMIZER, 1000),
    "one flipped bit": lambda newest, older: flip(newest / OPTIMIZER, -5),
    "zeros at the end of a file": lambda newest, older: rewrite(newest / MODEL, lambda old: old[:-4096] + bytes(4096)),
    "missing file": lambda newest, older: (newest / MODEL).unlink(),
    "empty file": lambda newest, older: os.truncate(newest / MODEL, 0),
    "file of an older step": lambda newest, older: shutil.copy(older / MODEL, newest / MODEL),
    "extra file": lambda newest, older: shutil.copy(older / MODEL, newest / "rank_00007_model_000.safetensors"),
}


def fill(folder: Path) -> Path:
    """Fill the file system of a folder to the last byte; return the file that takes the space."""
    filler = folder / "filler"
    with filler.open("wb", buffering=0) as file:
        try:
            while file.write(bytes(4096)):
                pass
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
    return filler


@functools.cache
def can_mount() -> bool:
    """Return whether this process may mount file systems: root on Linux, as in many containers."""
    try:
        with tempfile.TemporaryDirectory() as folder, small_disk(Path(folder), "64k"):
            return True
    except (OSError, subprocess.CalledProcessError):
        return False


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[None]:
    """Mount a small file system at `folder`."""
    folder.mkdir(exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    subprocess.run(mount, check=True, capture_output=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)
