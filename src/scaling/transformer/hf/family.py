"""Family: the common properties of the models of one `model_type` of Hugging Face, as data."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, final

from scaling.core import Problem, nearest
from scaling.transformer.config.architecture import TransformerArchitectureConfig
from scaling.transformer.hf.fields import Config, Field, Ours, Part, shown
from scaling.transformer.hf.inert import INERT, REFUSED
from scaling.transformer.hf.rope import FORMER, PRESENT, Rope, RopeByKind
from scaling.transformer.hf.settings import kinds_of, nested, resolved
from scaling.transformer.hf.tensors import Table, TensorMap
from scaling.transformer.plan.model import ModelPlan

ABOUT: Final = frozenset({"model_type", "architectures", "auto_map", "transformers_version"})
"""Fields that name the family and the program."""

_NAMED: Final = 20
"""Maximum number of unknown fields to name."""
_LONGEST: Final = 100
"""Maximum length of a field's name in a message."""

PRECISION: Final = Field("dtype", str, None, "precision", nullable=True, former="torch_dtype")


@final
@dataclass(frozen=True, kw_only=True)
class Family:
    """The models of one `model_type`: fields of config.json in both directions, and tensors."""

    model_type: str
    architecture: str
    """The class of `transformers` that reads these models, such as `LlamaForCausalLM`."""
    parts: Sequence[Part]
    """All fields that change the computation."""
    fixed: Mapping[str, Any]
    """Settings of ours that are the same in all models of the family."""
    table: Table
    implied: Callable[[Config], Mapping[str, Any]] = lambda config: {}
    """Settings that follow from fields which determine other settings as well."""
    inert_names: frozenset[str] = frozenset()
    """Fields of this family that change nothing."""
    ignored: Sequence[str] = ()
    """Regular expressions that match the whole name of tensors that old files hold and nobody needs."""
    former_names: Sequence[tuple[str, str]] = ()
    """(regular expression, replacement) for names of tensors in old files."""
    modules_in_memory: Mapping[str, str] = field(default_factory=dict)
    """The class's names of modules that have another name in the files; adapters use the class's names."""
    scales_embedding: bool = True
    """Whether the embedding module itself applies its factor: a prompt in place of its output is then not scaled."""

    @property
    def names(self) -> frozenset[str]:
        """Return the names of all fields that are known."""
        own = {name for part in self.parts for name in part.names}
        return INERT | self.inert_names | own | {*PRECISION.names, *ABOUT}

    @property
    def embedding(self) -> str:
        """Return the name of the tensor of the embedding."""
        return f"{self.table.embedding.theirs}.weight"

    @property
    def head(self) -> str:
        """Return the name of the tensor of the head; where it is tied, old files may hold a copy of the embedding."""
        return f"{self.table.head.theirs}.weight"

    def problems(self, config: Config) -> Iterator[Problem]:
        """Yield the fields whose values are wrong or not built."""
        complete, failed = self._complete(config), False
        unknown = [name for name in config if name not in self.names]
        for name in unknown[:_NAMED]:
            near = nearest(name, self.names)
            hint = f"did you mean {near}? If not, r" if near else "r"
            yield Problem(
                name if name.isprintable() and len(name) <= _LONGEST else shown(name),
                f"is not known for {self.model_type} models, and might change what they compute; {hint}emove it "
                "where it does not",
            )
        if len(unknown) > _NAMED:
            yield Problem("", f"{len(unknown) - _NAMED} more fields are not known for {self.model_type} models")
        own = {name for part in self.parts for name in part.names}
        yield from PRECISION.problems(config)
        for only in REFUSED:
            if only.name not in own:
                yield from only.problems(config)
        for part in sorted(self.parts, key=lambda part: not isinstance(part, Field)):
            if failed and not isinstance(part, Field):
                return  # the remaining parts count layers and positions
            for problem in part.problems(complete):
                failed = True
                yield problem

    def section(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """Return the section `transformer_architecture` of a valid config.json."""
        complete = self._complete(config)
        settings: dict[str, Any] = dict(self.fixed)
        layers: list[dict[str, Any]] = []
        for part in self.parts:
            read = part.read(complete)
            given = read.pop("layers", [])
            layers = (
                [{**one, **other} for one, other in zip(layers, given, strict=True)]
                if layers and given
                else (layers or given)
            )
            settings |= read
        settings |= {**self.implied(complete), **kinds_of(layers), **PRECISION.read(config)}
        return nested({key: value for key, value in settings.items() if value is not None})

    def config(
        self, architecture: TransformerArchitectureConfig, kept: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        """Return the config.json of a section, in the present schema.

        `kept` are fields of a file that was read (`inert`): each is written again if the section stays the same, even
        where it only restates a default.
        """
        written = self._written(resolved(architecture.as_dict()))
        if not kept:
            return written
        with_kept = dict(written)
        section = self._section_or_none(written)
        for name, value in kept.items():
            changed = {**with_kept, name: value}
            if section is None:
                with_kept.setdefault(name, value)
            elif self._section_or_none(changed) == section:
                with_kept = changed
        return with_kept

    def inert(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """Return the fields of a valid config.json that can be left out without changing the section.

        Fields to which an export alone would give another name of the same value are included.
        """
        ropes = [part for part in self.parts if isinstance(part, (Rope, RopeByKind))]
        former = {*PRECISION.names, *(name for rope in ropes for name in rope.former)}
        present = {name: value for name, value in config.items() if name not in former}
        for rope in ropes:
            present[PRESENT] = rope.present(self._complete(config))
        section = self.section(present)
        written = self.config(TransformerArchitectureConfig.from_dict(section))
        return {
            name: value
            for name, value in present.items()
            if name == PRESENT
            or (
                name not in ABOUT
                and (written.get(name, value) != value or self._section_or_none(_without(present, name)) == section)
            )
        }

    def fields(self, config: Mapping[str, Any]) -> dict[str, str]:
        """Return, for each setting of a section, the name of the field that it comes from."""
        complete = self._complete(config)
        found = {key: _origin(part, key, config) for part in (*self.parts, PRECISION) for key in part.read(complete)}
        by_kind = next((part for part in self.parts if isinstance(part, RopeByKind)), None)
        rotation = {} if by_kind is None else {"attention_kinds.rotary": _origin(by_kind, "layers", config)}
        return {**found, "attention_kinds": "sliding_window", **rotation}

    def tensors(self, plan: ModelPlan) -> tuple[TensorMap, ...]:
        """Return the maps of all their tensors, in the order of their files."""
        return tuple(self.table.maps(plan))

    def renamed(self, name: str) -> str:
        """Return the present name of a tensor that has an older name; other names are returned unchanged."""
        for pattern, replacement in self.former_names:
            if re.fullmatch(pattern, name):
                return re.sub(pattern, replacement, name)
        return name

    def in_memory(self, module: str) -> str:
        """Return the class's name for a module of the table."""
        return self.modules_in_memory.get(module, module)

    def _complete(self, config: Config) -> dict[str, Any]:
        given = {name: value for part in self.parts if isinstance(part, Field) for name, value in part.given(config)}
        return {**config, **given}

    def _written(self, ours: Ours) -> dict[str, Any]:
        written = {"architectures": [self.architecture], "model_type": self.model_type}
        for part in self.parts:
            written |= part.write(ours)
        return written | PRECISION.write(ours)

    def _section_or_none(self, config: Config) -> dict[str, Any] | None:
        if any(True for _ in self.problems(config)):
            return None
        return self.section(config)


def _origin(part: Part, key: str, config: Config) -> str:
    """Return the name of the field in which a file gives a setting."""
    if isinstance(part, Rope) and config.get(PRESENT) is None:
        former = {"rotary": FORMER, "rotary_embedding_base": part.base_name, "rotary_percentage": part.partial_name}
        return former[key]
    return next((name for name in part.names if config.get(name) is not None), part.names[0])


def _without(config: Config, name: str) -> dict[str, Any]:
    return {other: value for other, value in config.items() if other != name}
