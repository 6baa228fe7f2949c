"""Group X: checkpoints and configurations made by somebody who means harm, and secrets in the environment."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import shutil
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch

from scaling.core.checkpoint.header import tensor_bytes
from tests.faults.engine import Scene, launch_file, layout
from tests.faults.matrix import Case, End, Refuse, Survive
from tests.faults.storage_cases import MODEL, OPTIMIZER, rewrite

SECRET = "canary-7f3c9a"
SECRETS = ("WANDB_API_KEY", "HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "SCALING_PASSWORD")
_PREFIX = b'{\n"sha256": "'


class Bomb:
    """Creates a file when it is unpickled."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (f"touch {self.canary}",)


def cases() -> Iterator[Case]:
    """Yield the 18 cases."""
    for name, (place, message) in BOMBS.items():
        yield Case("X", f"pickle: {name}", Refuse(2, message), partial(hostile_checkpoint, place))
    for name, (forgery, message) in MANIFESTS.items():
        yield Case("X", f"manifest: {name}", Refuse(2, message), partial(hostile_checkpoint, forgery))
    for name, (change, message) in HEADERS.items():
        play = partial(hostile_checkpoint, partial(forge_header, change))
        yield Case("X", f"safetensors header: {name}", Refuse(2, message), play)
    for name, (text, message) in CONFIGURATIONS.items():
        yield Case("X", f"configuration: {name}", Refuse(2, message), partial(hostile_configuration, text))
    yield Case("X", "secrets in the environment", Survive(), secrets_in_the_environment)


def hostile_checkpoint(prepare: Callable[[Path, Path], object], scene: Scene) -> End:
    """Start from a step folder that was tampered with; `canary` must not appear."""
    scene.resume_from(4)
    canary = scene.folder / "canary"
    prepare(scene.step(4), canary)
    scene.watch()
    end = scene.run(layout())
    scene.require(not canary.exists(), "code in the checkpoint was executed")
    return end


def hostile_configuration(text: Callable[[Path], str], scene: Scene) -> End:
    """Start the program with a file; `canary` must not appear."""
    canary = scene.folder / "canary"
    path = scene.folder / "config.yml"
    path.write_text(text(canary))
    scene.watch()
    end = launch_file(path)
    scene.require(not canary.exists(), "code in the configuration was executed")
    return end


def secrets_in_the_environment(scene: Scene) -> End:
    """Nothing that is written, whatever its name, holds what the environment keeps."""
    environment = dict.fromkeys(SECRETS, SECRET)
    scene.save_dir.mkdir()
    end = scene.run({"logger.log_dir": str(scene.folder / "logs")}, environment=environment)
    files = [path for path in scene.folder.rglob("*") if path.is_file()]
    scene.require(any(path.name == "run.json" for path in files), "there is no run.json to look into")
    leaks = [path.name for path in files if SECRET.encode() in path.read_bytes()]
    scene.require(not leaks, f"the secret is in {leaks}")
    scene.require(SECRET not in end.message, "the secret is in the message")
    return end


def replace_by_pickle(folder: Path, canary: Path) -> None:
    """Put a pickle in the place of a file, and a manifest that agrees with its size."""
    bomb = pickle.dumps(Bomb(canary)).ljust(4096, b"\0")
    (folder / OPTIMIZER).write_bytes(bomb)
    entry = {"bytes": len(bomb), "header_sha256": hashlib.sha256(bomb[:8]).hexdigest()}
    forge(folder, lambda manifest: manifest["files"].update({OPTIMIZER: entry}))


def zip_archive(path: Path, canary: Path) -> None:
    """Write what torch.load would execute."""
    torch.save(Bomb(canary), path)


BOMBS: Mapping[str, tuple[Callable[[Path, Path], object], str]] = {
    "a .pt beside the data": (
        lambda folder, canary: zip_archive(folder / "evil.pt", canary),
        r"evil\.pt does not belong to the checkpoint and may hold code; it was not opened",
    ),
    "a .metadata as torch writes": (
        lambda folder, canary: (folder / ".metadata").write_bytes(pickle.dumps(Bomb(canary))),
        r"\.metadata does not belong to the checkpoint and may hold code",
    ),
    "in place of the optimizer's data": (replace_by_pickle, rf"{OPTIMIZER}: its header claims"),
    "under a name of safetensors": (
        lambda folder, canary: zip_archive(folder / "rank_00009_model_000.safetensors", canary),
        r"rank_00009_model_000\.safetensors does not belong to the checkpoint and may hold code",
    ),
}


def forge(folder: Path, change: Callable[[dict[str, Any]], object], text: Callable[[str], str] = str) -> None:
    """Change a manifest and give it the digest that fits."""
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    del manifest["sha256"]
    change(manifest)
    rest = text('",\n' + json.dumps(manifest)[1:]).encode()
    digest = hashlib.sha256(_PREFIX + b"0" * 64 + rest).hexdigest()
    path.write_bytes(_PREFIX + digest.encode() + rest)


def rename_in_manifest(name: str) -> Callable[[Path, Path], None]:
    """Return what lets the manifest name another file in place of one of its own, which is there."""

    def apply(folder: Path, canary: Path) -> None:
        shutil.copy(folder / MODEL, folder.parent / "evil.safetensors")
        forge(folder, lambda manifest: None, lambda text: text.replace(MODEL, name))

    return apply


def link_out(folder: Path, canary: Path) -> None:
    """Replace a file by a link to the same bytes elsewhere."""
    outside = folder.parent / "outside.safetensors"
    (folder / MODEL).rename(outside)
    (folder / MODEL).symlink_to(outside)


def many_files(folder: Path, canary: Path) -> None:
    """Claim a million files."""
    forge(folder, lambda manifest: manifest.update(files={f"f{number}.safetensors": 0 for number in range(10**6)}))


def repeated_file(folder: Path, canary: Path) -> None:
    """Name one file twice, with different sizes."""
    entry = f'"{MODEL}": {{"bytes": 1, "header_sha256": "{"0" * 64}"}}, '
    forge(folder, lambda manifest: None, lambda text: text.replace('"files": {', '"files": {' + entry))


MANIFESTS: Mapping[str, tuple[Callable[[Path, Path], object], str]] = {
    "file name with ../": (rename_in_manifest("../evil.safetensors"), r"names a file '\.\./evil\.safetensors'"),
    "absolute file name": (rename_in_manifest("/etc/evil.safetensors"), r"names a file '/etc/evil\.safetensors'"),
    "file that links out of the folder": (link_out, rf"{MODEL} is missing or not a regular file"),
    "10^6 files": (many_files, "lists 1000000 files; at most 100000"),
    "one file named twice": (repeated_file, rf"the key '{MODEL}' appears twice"),
}


def forge_header(change: Callable[[dict[str, Any]], object], folder: Path, canary: Path) -> None:
    """Change the header of a data file, and the manifest's digest of it."""
    path = folder / MODEL
    old = path.read_bytes()
    length = int.from_bytes(old[:8], "little")
    header = json.loads(old[8 : 8 + length])
    change(header)
    claimed = header.pop("claimed length", None)
    text = json.dumps(header).encode()
    raw = (len(text) if claimed is None else claimed).to_bytes(8, "little") + text
    rewrite(path, lambda _: raw + old[8 + length :])
    entry = {"bytes": path.stat().st_size, "header_sha256": hashlib.sha256(raw).hexdigest()}
    forge(folder, lambda manifest: manifest["files"].update({MODEL: entry}))


def overlap(header: dict[str, Any]) -> None:
    """Let the second tensor begin where the first does."""
    first, other = [entry for key, entry in header.items() if key != "__metadata__"][:2]
    size = tensor_bytes(other["dtype"], other["shape"])
    other["data_offsets"] = [first["data_offsets"][0], first["data_offsets"][0] + size]


def first_of(header: dict[str, Any]) -> dict[str, Any]:
    """Return the entry of one tensor."""
    found: dict[str, Any] = next(entry for key, entry in header.items() if key != "__metadata__")
    return found


HEADERS: Mapping[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "2^60 bytes": (lambda header: header.update({"claimed length": 2**60}), "its header claims 1152921504606846976"),
    "overlapping tensors": (overlap, "its header puts"),
    "shape that overflows": (lambda header: first_of(header).update(shape=[2**61, 8]), "its header puts"),
    "unknown type": (lambda header: first_of(header).update(dtype="F99"), "unknown data type 'F99'"),
}


def bomb_of_aliases(canary: Path) -> str:
    """Return nine lines that stand for a billion values."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 9)]
    return "\n".join(lines)


CONFIGURATIONS: Mapping[str, tuple[Callable[[Path], str], str]] = {
    "Python object in YAML": (
        lambda canary: f"version: !!python/object/apply:os.system ['touch {canary}']\n",
        "the tag .*python/object/apply:os.system is not allowed",
    ),
    "aliases of aliases": (bomb_of_aliases, "more than 200000 values"),
    "repeated keys": (
        lambda canary: "trainer:\n  seed: 1\n  seed: 2\n",
        r"trainer\.seed: is given twice, in lines 2 and 3",
    ),
    "shell command as a host": (
        lambda canary: f"runner:\n  hosts: ['localhost; touch {canary}']\n",
        r"runner\.hosts\.0: is 'localhost; touch .*'; write `name`",
    ),
}
