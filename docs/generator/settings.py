"""The configuration reference: a page for each section, with an entry for each setting's dotted path."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any, get_args, get_origin

from pydantic.fields import FieldInfo
from pydantic_core import to_jsonable_python

from docs.generator.docstrings import as_markdown, attribute_docs
from docs.generator.pages import REPOSITORY
from scaling.core import BaseConfig, ChangeRules, ConfigFamily, OnResume
from scaling.core.config.config_file import read_config
from scaling.core.config.explain import sections_of
from scaling.core.config.fields import Derived, NoEffect, SetByLauncher, Unavailable, marker
from scaling.core.config.plain_words import alternatives, expected
from scaling.core.config.yaml_text import dump_yaml, parse_yaml
from scaling.transformer import TransformerConfig

PREDECESSOR = REPOSITORY / "tests/predecessor/transformer_0.2.yml"
"""A file with every key of the predecessor."""
TOP = "top_level"

_ON_RESUME = {
    OnResume.IDENTITY: "refused, unless `trainer.accept_changes` names it",
    OnResume.ORDER: "refused where the place in the data is kept, else listed",
    OnResume.SCHEDULE: "listed",
    OnResume.RUNTIME: "free",
}


@dataclass(frozen=True)
class Setting:
    """A field of a section, at the dotted path by which a file or a command gives it."""

    path: str
    field: FieldInfo
    kinds: tuple[str, ...] = ()
    """`type: yarn`, of each kind of a family that has this field. Empty: there are no kinds, or all have it."""

    @property
    def sections(self) -> list[type[BaseConfig]]:
        """What is below this setting."""
        return [found for found in sections_of(self.field.annotation) if issubclass(found, BaseConfig)]

    @property
    def below(self) -> str:
        """The path of what is below this setting; a star stands for the number or the name of an item."""
        arms = alternatives(self.field.annotation)
        of_items = [
            arm for arm in arms if get_origin(arm) in (list, dict) and any(map(list, map(sections_of, get_args(arm))))
        ]
        return f"{self.path}.*" if of_items else self.path


def settings_of(section: type[BaseConfig], below: str) -> list[Setting]:
    """Return the settings of a section, and of each kind where it is a family. A path may come more than once."""
    if not issubclass(section, ConfigFamily):
        return [Setting(below + name, field) for name, field in section.model_fields.items()]
    found: dict[tuple[str, Any], Setting] = {}
    members = section.members()
    for kind, member in members.items():
        for name, field in member.model_fields.items():
            same = (name, None if name == section.kind_key else repr(field))
            known = found.get(same, Setting(below + name, field))
            found[same] = Setting(known.path, known.field, (*known.kinds, f"`{section.kind_key}: {kind}`"))
    common = tuple(f"`{section.kind_key}: {kind}`" for kind in members)
    return [Setting(each.path, each.field, () if each.kinds == common else each.kinds) for each in found.values()]


def all_settings(section: type[BaseConfig], below: str = "") -> Iterator[Setting]:
    """Yield every setting of a configuration."""
    for setting in settings_of(section, below):
        yield setting
        for inner in setting.sections:
            yield from all_settings(inner, f"{setting.below}.")


def pages(config: type[BaseConfig] = TransformerConfig) -> Iterator[tuple[str, str]]:
    """Yield the name and the text of each page."""
    of_config = _Reference(ChangeRules.of(config), predecessor_keys())
    alone = [setting for setting in settings_of(config, "") if not setting.sections]
    for setting in settings_of(config, ""):
        if setting.sections:
            old = [name for name, new in config.former_names.items() if new == setting.path]
            text = "".join(of_config.section(setting, 1, old[0] if old else setting.path))
            yield f"{setting.path}.md", text
    if alone:
        entries = [entry for setting in alone for entry in of_config.entry(setting, [setting], setting.path)]
        yield f"{TOP}.md", "".join(["# Top level\n\nSettings that are in no section.\n\n", *entries])


def predecessor_keys() -> frozenset[str]:
    """Return the dotted path of every key that the predecessor had."""
    values, _ = parse_yaml(read_config(PREDECESSOR), source=str(PREDECESSOR))
    return frozenset(_keys(values))


def _keys(values: Any, below: str = "") -> Iterator[str]:
    for name, value in values.items():
        yield f"{below}{name}"
        inside = value[0] if isinstance(value, list) and value else value
        if isinstance(inside, Mapping):
            yield from _keys(inside, f"{below}{name}{'.*' if inside is not value else ''}.")


@dataclass(frozen=True)
class _Reference:
    rules: ChangeRules
    former: frozenset[str]

    def section(self, setting: Setting, level: int, former: str) -> Iterator[str]:
        """Yield the text of a section: what it is for, its settings, then the sections in it."""
        yield f"{'#' * level} {setting.path}\n\n"
        yield from self.entry(setting, [setting], former)
        for section in setting.sections:
            grouped: dict[str, list[Setting]] = {}
            for inner in settings_of(section, f"{setting.below}."):
                grouped.setdefault(inner.path, []).append(inner)
            old = {new: name for name, new in section.former_names.items()}
            yield contents([path for path, variants in grouped.items() if not variants[0].sections])
            for last in (False, True):  # sections behind the settings
                for path, variants in grouped.items():
                    name = path.rpartition(".")[2]
                    formerly = f"{former}{setting.below.removeprefix(setting.path)}.{old.get(name, name)}"
                    if last and variants[0].sections:
                        yield from self.section(variants[0], min(level + 1, 4), formerly)
                    elif not last and not variants[0].sections:
                        yield from self.entry(variants[0], variants, formerly)

    def entry(self, setting: Setting, variants: list[Setting], former: str) -> Iterator[str]:
        """Yield the text of a setting, whose meaning may depend on the kind of its section."""
        field = setting.field
        facts = [] if setting.sections else [type_of(field)]
        if not setting.sections and default_of(field):
            facts.append(f"default: {default_of(field)}")
        if not setting.sections and not marker(field, NoEffect) and not marker(field, Unavailable):
            facts.append(f"on resume: {_ON_RESUME[self.rules.kind(setting.path)]}")
        if former in self.former:
            facts.append(f"Aleph-Alpha/scaling: {'the same' if former == setting.path else f'`{former}`'}")
        yield f"```{{confval}} {setting.path}\n\n"
        for variant in variants:
            yield from self.meaning(variant, alone=len(variants) == 1)
        if facts := facts if len(variants) == 1 else facts[2:]:
            yield "{.facts}\n" + " · ".join(facts) + "\n"
        yield "```\n\n"

    def meaning(self, setting: Setting, *, alone: bool) -> Iterator[str]:
        field = setting.field
        if setting.kinds and not alone:
            yield f"With {_listed(setting.kinds)}: {type_of(field)}; by default {default_of(field) or 'required'}.\n\n"
        elif setting.kinds:
            yield f"Only with {_listed(setting.kinds)}.\n\n"
        said, about = field.description or "", []
        for section in setting.sections:
            if issubclass(section, ConfigFamily):
                kinds = [f"`{kind}`" for kind in section.members()]
                about.append(f"Its kind is chosen by `{section.kind_key}`: {_listed(kinds)}.")
            elif section.__doc__:
                about.append(as_markdown(section.__doc__))
        if not any(text.startswith(as_markdown(said).rstrip(".")) for text in about):
            yield as_markdown(said) + "\n\n"
        for text in about:
            yield f"{text}\n\n"
        if marker(field, SetByLauncher):
            yield "The launcher sets it for each process: it is part of no file.\n\n"
        if marker(field, Derived):
            yield "Left out or null, it follows from the other settings.\n\n"
        if without := marker(field, NoEffect):
            yield f"**No effect**, accepted for the sake of old files: {as_markdown(without.why)}.\n\n"
        if unavailable := marker(field, Unavailable):
            yield f"**Not available** in this version: {as_markdown(unavailable.instead)}.\n\n"
        yield from _choices(field)


def contents(paths: list[str]) -> str:
    """Return links to the settings of a section, where they are too many to be seen at once."""
    links = [f"{{confval}}`{path.rpartition('.')[2]} <{path}>`" for path in paths]
    return " · ".join(links) + "\n\n" if len(links) > 5 else ""


def type_of(field: FieldInfo) -> str:
    """Say what values a setting takes, and within which bounds."""
    if any(isinstance(arm, type) and issubclass(arm, Enum) for arm in alternatives(field.annotation)):
        return as_markdown(expected(field.annotation, field.metadata)).replace("one of ", "", 1) or "text"
    return as_markdown(expected(field.annotation, field.metadata))


def default_of(field: FieldInfo) -> str:
    """Return the default as a file would say it; empty where the setting is required, or is a section."""
    if field.is_required():
        return ""
    value = field.get_default(call_default_factory=True)
    if isinstance(value, BaseConfig) or (
        isinstance(value, list) and any(isinstance(item, BaseConfig) for item in value)
    ):
        return ""
    if value is None:
        return "`null`"
    plain = to_jsonable_python(value)
    text = json.dumps(plain) if isinstance(plain, (list, dict)) else dump_yaml({"x": plain}).removeprefix("x:").strip()
    return f"`{text}`"


def _choices(field: FieldInfo) -> Iterator[str]:
    """Yield what each choice means, where that is said."""
    for arm in alternatives(field.annotation):
        if isinstance(arm, type) and issubclass(arm, Enum):
            docs = attribute_docs(inspect.getsource(arm))
            lines = [f"- `{member.value}`: {as_markdown(docs[member.name])}\n" for member in arm if member.name in docs]
            yield "".join([*lines, "\n"] if lines else [])


def _listed(words: tuple[str, ...] | list[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"
