"""Rotary positions of config.json, in the present schema (`rope_parameters`) and in the older ones."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from scaling.core import Problem
from scaling.transformer.hf.fields import WORDS, Config, Ours, given, is_of, shown
from scaling.transformer.hf.layer_types import LayerTypes
from scaling.transformer.hf.settings import NO_ROTARY, TRAINED_LENGTH

PRESENT: Final = "rope_parameters"
FORMER: Final = "rope_scaling"


@dataclass(frozen=True)
class Parameter:
    """A parameter of a rotation: our name for it, and its kind."""

    ours: str
    kind: type = float
    required: bool = False
    usual: Any = None
    """The value where the file has none; this value is not written."""


LENGTH: Final = {"original_max_position_embeddings": Parameter("trained_length", int)}
FACTOR: Final = {"factor": Parameter("factor", required=True)}
TYPES: Final[Mapping[str, Mapping[str, Parameter]]] = {
    "default": {},
    "linear": FACTOR,
    "dynamic": FACTOR,
    "yarn": FACTOR
    | LENGTH
    | {
        "attention_factor": Parameter("attention_factor"),
        "beta_fast": Parameter("beta_fast", usual=32.0),
        "beta_slow": Parameter("beta_slow", usual=1.0),
        "mscale": Parameter("mscale"),
        "mscale_all_dim": Parameter("mscale_all_dim"),
        "truncate": Parameter("truncate", bool, usual=True),
    },
    "llama3": FACTOR
    | LENGTH
    | {
        "low_freq_factor": Parameter("low_freq_factor", required=True),
        "high_freq_factor": Parameter("high_freq_factor", required=True),
    },
    "longrope": LENGTH
    | {
        "factor": Parameter("factor"),
        "attention_factor": Parameter("attention_factor"),
        "short_factor": Parameter("short_factor", list, required=True),
        "long_factor": Parameter("long_factor", list, required=True),
    },
}
"""The types of rotation that are built, and their parameters by the names in config.json."""


def type_of(parameters: Mapping[str, Any], renamed: Mapping[str, str]) -> str:
    """Return the type of a rotation, whose field is `type` in older files."""
    name = str(parameters.get("rope_type", parameters.get("type", "default")))
    return renamed.get(name, name)


def rotary(parameters: Mapping[str, Any], length: int) -> dict[str, Any]:
    """Return the section `rotary` of parameters that have type and base; `length`: max_position_embeddings."""
    kind = parameters["rope_type"]
    result = {"type": kind}
    for name, parameter in TYPES[kind].items():
        if parameters.get(name) not in (None, parameter.usual):
            result[parameter.ours] = parameters[name]
    if kind in TRAINED_LENGTH:
        result.setdefault("trained_length", length)
    if kind == "longrope" and "attention_factor" not in result:
        # The factor is written out; otherwise, training with another sequence_length would change the model.
        result.setdefault("factor", length / result["trained_length"])
    return result


def parameters_of(ours: Mapping[str, Any], length: int) -> dict[str, Any]:
    """Return the entry of `rope_parameters` for a resolved rotation; `length`: sequence_length."""
    if ours == NO_ROTARY:
        return {"rope_type": "default"}
    kind = ours["type"]
    result = {"rope_type": kind, "rope_theta": ours["base"]}
    for name, parameter in TYPES[kind].items():
        if parameter.ours in ours and ours[parameter.ours] != parameter.usual:
            result[name] = ours[parameter.ours]
    if kind == "longrope" and result.get("factor") == length / ours["trained_length"]:
        result.pop("factor")
    return result


def problems_of(path: str, parameters: Mapping[str, Any], extra: Sequence[str]) -> Iterator[Problem]:
    """Yield the problems of one entry that has its type as `rope_type`."""
    kind = parameters["rope_type"]
    if kind not in TYPES:
        yield Problem(f"{path}.rope_type", f"is {shown(kind)}, which is not built; these are: {', '.join(TYPES)}")
        return
    known = TYPES[kind]
    for name, value in parameters.items():
        if value is None or name in ("rope_type", "type", *extra):
            continue
        if name == "rope_theta":
            parameter = Parameter("base")
        elif name in known:
            parameter = known[name]
        else:
            options = ", ".join(("rope_theta", *extra, *known))
            yield Problem(
                f"{path}.{name}",
                f"is not known for rope_type {kind}, which has {options}; remove it if the model was trained without",
            )
            continue
        if not is_of(parameter.kind, value):
            yield Problem(f"{path}.{name}", f"must be {WORDS[parameter.kind]}, not {shown(value)}")
        elif parameter.kind is list and (wrong := [one for one in value if not is_of(float, one) or not one > 0]):
            yield Problem(f"{path}.{name}", f"must be a list of numbers above 0, but holds {shown(wrong[0])}")
        elif parameter.kind is int and not value > 0:
            yield Problem(f"{path}.{name}", f"must be above 0, not {shown(value)}")
    for name, parameter in known.items():
        if parameter.required and parameters.get(name) is None:
            yield Problem(path, f"has no {name}, which rope_type {kind} needs; add it")


@dataclass(frozen=True)
class Rope:
    """One rotation for all layers."""

    base: float = 10000.0
    partial: float | None = None
    """Share of a head that is rotated where the file does not say; None: the family rotates the whole head."""
    base_name: str = "rope_theta"
    """Name of the base in older files."""
    partial_name: str = "partial_rotary_factor"
    """Name of the share in older files."""
    echoes: Sequence[str] = ()
    """Other names under which some files repeat base and share, in this order; no model uses them."""
    length_name: str | None = None
    """A field beside `rope_parameters` with the trained length, which takes precedence."""
    length: int | None = None
    """Default of the field `length_name`."""
    renamed: Mapping[str, str] = field(default_factory=dict)
    """Other names of types, each with the usual name."""

    @property
    def names(self) -> Sequence[str]:
        """Return the names in all schemas."""
        shares = ("partial_rotary_factor",) if self.partial is not None and not self.echoes else ()
        lengths = () if self.length_name is None else (self.length_name,)
        return (PRESENT, *self.former, *shares, *lengths)

    @property
    def former(self) -> Sequence[str]:
        """Return the names that only older schemas have."""
        share = () if self.partial_name == "partial_rotary_factor" else (self.partial_name,)
        return (FORMER, self.base_name, *share, *self.echoes)

    def present(self, config: Config) -> dict[str, Any]:
        """Return `rope_parameters` as transformers completes them, with everything the file says."""
        said = config.get(FORMER) or config.get(PRESENT) or {}
        result = {key: value for key, value in said.items() if value is not None}
        result["rope_type"] = type_of(said, self.renamed)
        if result.get("rope_theta") is None:
            result["rope_theta"] = given(config, self.base_name, self.base)
        if self.partial is not None:
            result.setdefault("partial_rotary_factor", given(config, self.partial_name, self.partial))
        if self.length_name is not None and result["rope_type"] in TRAINED_LENGTH:
            result["original_max_position_embeddings"] = given(config, self.length_name, self.length)
        return result

    def problems(self, config: Config) -> Iterator[Problem]:
        """Yield problems: values that are wrong, or not built."""
        if (yield from schema_problems(config)):
            return
        wrong = [name for name in self.names[1:] if name != FORMER and not _is_number(config.get(name))]
        for name in wrong:
            yield Problem(name, f"must be a number, not {shown(config[name])}")
        if wrong:
            return
        path = FORMER if config.get(FORMER) else PRESENT
        present = self.present(config)
        if self.partial is None and present.get("partial_rotary_factor") == 1.0:
            del present["partial_rotary_factor"]
        inside, beside = (config.get(path) or {}).get("original_max_position_embeddings"), self.length
        if self.length_name is not None:
            beside = given(config, self.length_name, beside)
            if inside is not None and inside != beside:
                yield Problem(
                    f"{path}.original_max_position_embeddings",
                    f"is {shown(inside)}, but transformers takes the {self.length_name} beside it, {beside}; give both "
                    "one value",
                )
        yield from problems_of(path, present, () if self.partial is None else ("partial_rotary_factor",))
        for name, meant in zip(self.echoes, ("rope_theta", "partial_rotary_factor"), strict=False):
            if config.get(name) is not None and config[name] != present[meant]:
                yield Problem(
                    name, f"is {shown(config[name])}, but the model has {shown(present[meant])}; give both one value"
                )

    def read(self, config: Config) -> dict[str, Any]:
        """Return the settings of the model."""
        present = self.present(config)
        result: dict[str, Any] = {"rotary_embedding_base": present["rope_theta"]}
        if self.partial is not None:
            result["rotary_percentage"] = present["partial_rotary_factor"]
        if present["rope_type"] != "default":
            result["rotary"] = rotary(present, config["max_position_embeddings"])
        return result

    def write(self, ours: Ours) -> dict[str, Any]:
        """Return the rotation of the first layer that has one."""
        first = next((layer["rotary"] for layer in ours["layers"] if layer["rotary"] != NO_ROTARY), NO_ROTARY)
        result = parameters_of(first, ours["sequence_length"])
        if self.partial is not None:
            result["partial_rotary_factor"] = ours["rotary_percentage"]
        written = {PRESENT: result}
        if self.length_name is not None and "original_max_position_embeddings" in result:
            written[self.length_name] = result["original_max_position_embeddings"]
        if first["type"] == "dynamic":
            written["max_position_embeddings"] = first["trained_length"]
        return written


@dataclass(frozen=True)
class RopeByKind:
    """A rotation for each of the two kinds of layers."""

    layer_types: LayerTypes
    full: float
    """Default base of full layers."""
    sliding: float
    """Default base of sliding layers."""
    sliding_name: str | None = None
    """Name of the base of sliding layers in older files, where `rope_theta` is the base of full layers only."""

    @property
    def names(self) -> Sequence[str]:
        """Return the names in all schemas."""
        return (PRESENT, *self.former)

    @property
    def former(self) -> Sequence[str]:
        """Return the names of older schemas."""
        return (FORMER, "rope_theta", *(() if self.sliding_name is None else (self.sliding_name,)))

    def present(self, config: Config) -> dict[str, Any]:
        """Return `rope_parameters` as transformers completes them, with everything the file says."""
        said = config.get(PRESENT) or {}
        bases = {
            "full_attention": given(config, "rope_theta", self.full),
            "sliding_attention": given(config, self.sliding_name or "", self.sliding),
        }
        result = {}
        for kind, base in bases.items():
            entry = dict(said.get(kind) or {})
            if kind == "full_attention":
                entry |= config.get(FORMER) or {}
            result[kind] = {key: value for key, value in entry.items() if value is not None}
            result[kind]["rope_type"] = type_of(entry, {})
            result[kind].setdefault("rope_theta", base)
        return result

    def problems(self, config: Config) -> Iterator[Problem]:
        """Yield problems: values that are wrong, or not built."""
        if (yield from schema_problems(config)):
            return
        wrong = [name for name in self.former[1:] if not _is_number(config.get(name))]
        for name in wrong:
            yield Problem(name, f"must be a number, not {shown(config[name])}")
        for name, entry in (config.get(PRESENT) or {}).items():
            if name not in ("full_attention", "sliding_attention"):
                wrong.append(name)
                yield Problem(
                    f"{PRESENT}.{name}",
                    "is not known: this family has a rotation for each kind of layers; put full_attention and "
                    "sliding_attention here, each with rope_type and rope_theta",
                )
            elif entry is not None and not isinstance(entry, Mapping):
                wrong.append(name)
                yield Problem(f"{PRESENT}.{name}", f"must be {WORDS[dict]}, not {shown(entry)}")
        if wrong:
            return
        for kind, entry in self.present(config).items():
            if entry.get("partial_rotary_factor") == 1.0:
                del entry["partial_rotary_factor"]
            path = FORMER if config.get(FORMER) and kind == "full_attention" else f"{PRESENT}.{kind}"
            yield from problems_of(path, entry, ())
            if entry.get("truncate") is False:
                yield Problem(
                    f"{path}.truncate",
                    "is false, which transformers ignores in a rotation of one kind of layers; set it to true, as it "
                    "computes",
                )

    def read(self, config: Config) -> dict[str, Any]:
        """Return the rotation of each layer."""
        present = self.present(config)
        sections = {
            kind: rotary(entry, config["max_position_embeddings"]) | {"base": entry["rope_theta"]}
            for kind, entry in present.items()
        }
        return {"layers": [{"rotary": sections[kind]} for kind in self.layer_types.of(config)]}

    def write(self, ours: Ours) -> dict[str, Any]:
        """Return the rotation of the first layer of each kind."""
        entries = {}
        for kind, is_full in (("full_attention", True), ("sliding_attention", False)):
            of_kind = [layer["rotary"] for layer in ours["layers"] if (layer["window"] is None) == is_full]
            if of_kind:
                entries[kind] = parameters_of(of_kind[0], ours["sequence_length"])
        return {PRESENT: entries}


def schema_problems(config: Config) -> Generator[Problem, None, bool]:
    """Yield the problems of the two schemas as such; return whether there are any."""
    found = False
    for name in (PRESENT, FORMER):
        if config.get(name) is not None and not isinstance(config[name], Mapping):
            found = True
            yield Problem(name, f"must be {WORDS[dict]}, not {shown(config[name])}")
    if config.get(PRESENT) and config.get(FORMER) and config[PRESENT] != config[FORMER]:
        found = True
        yield Problem(FORMER, f"is there beside {PRESENT}, which took its place; remove one of the two")
    return found


def _is_number(value: Any) -> bool:
    return value is None or is_of(float, value)
