"""The base of a fine-tuning: the checkpoint of its frozen weights, recorded with the weights that are trained on it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from typing_extensions import Self

from scaling.core.checkpoint.communicator import Communicator
from scaling.core.checkpoint.manifest import Manifest
from scaling.core.checkpoint.search import (
    Rejected,
    Search,
    StoredCheckpoint,
    candidates,
    find_newest,
    name_problems,
)
from scaling.core.checkpoint.verify import quick_problems, read_manifest
from scaling.core.errors import CheckpointError, ScalingError
from scaling.core.storage.json_values import Json, is_count

BASE: Final = "base"
"""Name of the scalar for the base, in checkpoints of weights trained on a base; null where there was none."""

_SHOWN_DIGITS: Final = 12
_REMEDY: Final = "set trainer.load_dir to the folder that the base is in now"


@dataclass(frozen=True)
class BaseReference:
    """A reference to a base: its path, its step, and the digest of its weights, by which it is recognised."""

    path: Path
    step: int
    digest: str

    @classmethod
    def to(cls, stored: StoredCheckpoint) -> Self:
        """Return the reference to a checkpoint."""
        return cls(stored.path.resolve(), stored.step, stored.manifest.weights_digest)

    @classmethod
    def of(cls, scalars: Mapping[str, Json]) -> Self | None:
        """Return the reference to the base in a checkpoint's scalars, None where there is none.

        A malformed reference is a `CheckpointError`.
        """
        found: Any = scalars.get(BASE)
        if found is None:
            return None
        if problems := reference_problems(scalars):
            raise CheckpointError(f"the checkpoint's base is malformed ({'; '.join(problems)}); load another one")
        return cls(Path(found["path"]), found["step"], found["digest"])

    def as_dict(self) -> dict[str, str | int]:
        """Return the reference in the form that a checkpoint stores."""
        return {"path": str(self.path), "step": self.step, "digest": self.digest}

    def differences(self, manifest: Manifest) -> Sequence[str]:
        """Return why a checkpoint is not the base; empty where it is."""
        digest = manifest.weights_digest
        if digest == self.digest:
            return []
        return [f"it is of step {manifest.step} and the digest of its weights is {digest[:_SHOWN_DIGITS]}"]

    @property
    def short_digest(self) -> str:
        """Return the first digits of the digest, for people."""
        return self.digest[:_SHOWN_DIGITS]

    def __str__(self) -> str:
        return f"{self.path} (step {self.step}, digest of its weights {self.short_digest})"


def is_on_base(manifest: Manifest) -> bool:
    """Return whether a checkpoint holds only weights trained on a base, so that the base must be loaded first."""
    return BASE in manifest.scalars


def reference_problems(scalars: Mapping[str, Json]) -> list[str]:
    """Return why the scalar `base`, where there is one, is not a valid reference. Pure."""
    found = scalars.get(BASE)
    if found is None:
        return []
    if not isinstance(found, Mapping):
        return [f"base is {found!r:.100}, not a table"]
    problems = [
        f"base.{name} is {found.get(name)!r:.100}, not text" for name in ("path", "digest") if not _is_text(found, name)
    ]
    if not is_count(found.get("step")):
        problems.append(f"base.step is {found.get('step')!r:.100}, not a whole number from 0 to 2^62")
    return problems


def find_base(
    reference: BaseReference,
    elsewhere: Path | None = None,
    communicator: Communicator | None = None,
    *,
    remedy: str = _REMEDY,
) -> StoredCheckpoint:
    """Return the base, verified except for optimizer states, from its recorded path or else from `elsewhere`.

    `elsewhere` is a step folder or a folder of step folders. Collective: all ranks share the reading and get the same
    result. Where the base is missing, or another checkpoint is in its place, a `CheckpointError` says what was found
    where, and `remedy`.
    """
    tried = []
    for place in _places(reference, elsewhere):
        search = find_newest(place, communicator, weights_only=True, check=reference.differences, step=reference.step)
        if search.found is not None:
            return search.found
        tried.append(search)
    raise CheckpointError(_refusal(reference, tried, remedy))


def glance_at_base(reference: BaseReference, elsewhere: Path | None = None) -> str | None:
    """Return what is wrong with the base, judged by manifests, names and sizes only; None where nothing is."""
    tried = []
    for place in _places(reference, elsewhere):
        rejected = []
        for folder in _folders(place, reference.step):
            try:
                manifest = read_manifest(folder)
                problems = [*name_problems(folder, manifest), *reference.differences(manifest)]
                problems = problems or quick_problems(folder, manifest)
            except (ScalingError, OSError) as error:
                problems = [str(error)]
            if not problems:
                return None
            rejected.append(Rejected(folder, "; ".join(problems)))
        tried.append(Search(place, None, tuple(rejected)))
    return _refusal(reference, tried)


def _places(reference: BaseReference, elsewhere: Path | None) -> list[Path]:
    return list(dict.fromkeys(place for place in (reference.path, elsewhere) if place is not None))


def _folders(place: Path, step: int) -> list[Path]:
    try:
        return [place / name for name in candidates(place, step)]
    except OSError:
        return []


def _refusal(reference: BaseReference, tried: Sequence[Search], remedy: str = _REMEDY) -> str:
    lines = [f"this was trained on the base {reference}, which was not found:"]
    for search in tried:
        reasons = [f"{found.path}: {found.reason}" for found in search.rejected]
        lines += [f"  - {reason}" for reason in reasons or [f"{search.directory}: no checkpoint of that step"]]
    lines.append(remedy)
    return "\n".join(lines)


def _is_text(table: Mapping[str, Json], name: str) -> bool:
    value = table.get(name)
    return isinstance(value, str) and value != ""
