"""What became of each field of the predecessor's configuration, as the table of docs/coming_from.md.

`python -m tests.predecessor.field_table` writes the table anew.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from pydantic import BaseModel

from scaling.core.config.explain import sections_of
from scaling.core.config.fields import NoEffect, Unavailable, marker
from scaling.transformer.config.first_version import FirstTrainingConfig
from scaling.transformer.config.root import TransformerConfig
from scaling.transformer.config.training import ContrastiveLossConfig

FIELDS: Final = (Path(__file__).parent / "fields.txt").read_text().split()
"""Every field of versions 0.1 and 0.2, by its path."""
PAGE: Final = Path(__file__).parents[2] / "docs/coming_from.md"
START, END = "<!-- table: fields -->\n", "<!-- end -->"

TRANSLATED: Final = {
    **{
        f"training.{name}": "translated"
        for name in (*FirstTrainingConfig.model_fields, *FirstTrainingConfig.former_names)
    },
    "embedding_learning_rate_scheduler": "translated",
}
"""What version 0.1 said about groups of parameters."""


@dataclass(frozen=True)
class Fate:
    """What became of a field."""

    word: str
    """`same`, `renamed`, `no effect` or `gone`."""
    remark: str = ""


def fate(path: str) -> Fate | None:
    """Return what became of the field at a path; None for one that is not known here at all."""
    if any(path == name or path.startswith(f"{name}.") for name in TRANSLATED):
        return Fate("renamed", "becomes `training_groups` when the file is read ([above](#what-is-trained-since-01))")
    return _fate(path.split("."), TransformerConfig)


def _fate(parts: Sequence[str], annotation: Any) -> Fate | None:
    if not parts:
        return Fate("same")
    if parts[0] == "*":
        return _fate(parts[1:], annotation)
    found = [known for section in sections_of(annotation) for known in _in_section(parts, section)]
    return min(found, key=lambda one: one.word != "same", default=None)


def _in_section(parts: Sequence[str], section: type[BaseModel]) -> Iterator[Fate]:
    """Yield what became of a field in a section and, where it is a family, in each of its members."""
    for member in (section, *section.__subclasses__()):
        if member is ContrastiveLossConfig and parts != ["loss_type"]:
            if parts[0] in member.model_fields:
                yield Fate("gone", "`contrastive_loss` is refused")
            continue
        former: Mapping[str, str] = getattr(member, "former_names", {})
        if parts[0] in former:
            yield Fate("renamed", f"`{former[parts[0]]}`; the old name is read, too")
        elif (field := member.model_fields.get(parts[0])) is not None:
            if (idle := marker(field, NoEffect)) is not None:
                yield Fate("no effect", idle.why)
            elif (gone := marker(field, Unavailable)) is not None:
                yield Fate(
                    "gone", "refused unless it is at its default" + (f": {gone.instead}" if gone.instead else "")
                )
            elif (inner := _fate(parts[1:], field.annotation)) is not None:
                yield inner


def table() -> str:
    """Return the rows, section by section: first what is the same, then the others, those alike in one row."""
    rows: dict[str, dict[Fate, list[str]]] = {}
    for path in FIELDS:
        found = fate(path)
        assert found is not None, path
        section, _, name = path.partition(".")
        of_section = rows.setdefault(section if name else "", {})
        of_section.setdefault(found, []).append(name if found.word == "same" and name else path)
    lines = ["| field | here | |", "|---|---|---|"]
    for section, fates in rows.items():
        for found, names in sorted(fates.items(), key=lambda one: one[0].word != "same"):
            of = f"of `{section}`: " if section and found.word == "same" else ""
            lines.append(f"| {of}{', '.join(f'`{name}`' for name in names)} | {found.word} | {found.remark} |")
    return "\n".join(lines) + "\n"


def with_table(text: str) -> str:
    """Return the page with the table as it is now."""
    return re.sub(rf"({START})(.*?)({END})", lambda found: found[1] + table() + found[3], text, flags=re.DOTALL)


if __name__ == "__main__":
    PAGE.write_text(with_table(PAGE.read_text()))
