"""BaseConfig reports everything at once, never changes its input, and reads back what it writes."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator, Mapping
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, ClassVar

import pytest
from pydantic import Field, ValidationError, field_validator

from scaling.core.config.base import BaseConfig
from scaling.core.config.fields import ConfigWarning, Derived, NoEffect, SetByLauncher, Unavailable
from scaling.core.errors import ConfigError, Problem, StorageError


class Colour(str, Enum):
    RED = "red"
    BLUE = "blue"


class Paint(BaseConfig):
    """A paint."""

    former_names: ClassVar[Mapping[str, str]] = {"color": "colour"}

    colour: Colour = Colour.RED
    """Colour."""
    litres: float = Field(default=1.0, gt=0, le=100)
    """Amount."""
    coats: int = Field(default=2, ge=1)
    """Coats."""
    area: Annotated[int, Derived()] = 0
    """Area."""
    file: Path | None = None
    """File."""
    lead: Annotated[bool, NoEffect("lead is forbidden")] = False
    """Lead."""
    glitter: Annotated[bool, Unavailable()] = False
    """Glitter."""
    bucket: Annotated[int | None, SetByLauncher()] = None
    """Bucket."""

    @classmethod
    def prepare(cls, given: dict[str, Any]) -> Iterator[Problem]:
        if "area" not in given:
            given["area"] = int(10 * given.get("litres", 1))
        yield from ()

    def problems(self) -> Iterator[Problem]:
        if self.coats > self.area:
            yield Problem("coats", f"is {self.coats}, more than area ({self.area})")


class Wall(BaseConfig):
    """A wall."""

    name: str
    """Name."""
    height: float = 2.5
    """Height."""


def colours_differ(inside: Paint, outside: Paint) -> Iterator[Problem]:
    if inside.colour is outside.colour:
        yield Problem("inside.colour", f"is {inside.colour.value} like outside.colour; choose another")


def walls_are_painted(inside: Paint, walls: list[Wall]) -> Iterator[Problem]:
    if len(walls) > inside.area:
        yield Problem("walls", "are too many")


class House(BaseConfig):
    """A house."""

    cross_checks = (colours_differ, walls_are_painted)

    inside: Paint = Field(default_factory=Paint)
    """Inside."""
    outside: Paint = Field(default_factory=lambda: Paint(colour=Colour.BLUE))
    """Outside."""
    walls: list[Wall] = Field(default_factory=list)
    """Walls."""
    doors: list[int] | None = None
    """Doors."""
    brushes: list[Path] | None = None
    """Brushes."""
    total: int = 0
    """Total."""

    def derived(self) -> Mapping[str, Any]:
        return {"total": self.inside.area + self.outside.area}


def problems_of(values: Mapping[str, Any], *overrides: str) -> list[str]:
    with pytest.raises(ConfigError) as raised:
        House.from_dict(values, overrides)
    return [str(problem) for problem in raised.value.problems]


def test_defaults_make_a_valid_configuration_with_derived_values() -> None:
    house = House.from_dict({})
    assert house == House()
    assert (house.inside.area, house.total) == (10, 20)
    assert house.outside.colour is Colour.BLUE


def test_a_default_is_checked_like_an_input() -> None:
    class Careless(BaseConfig):
        walls: int = Field(default=0, ge=1)
        """Walls."""

    with pytest.raises(ConfigError, match="walls: must be"):
        Careless()


def test_loading_never_changes_what_it_is_given() -> None:
    values = {"inside": {"color": "red", "lead": False}, "walls": [{"name": "a"}]}
    before = copy.deepcopy(values)
    house = House.from_dict(values, ["inside.coats=3", "walls.0.height=1", "walls.1.name=b"])
    assert values == before
    assert (house.inside.coats, [wall.name for wall in house.walls]) == (3, ["a", "b"])


def test_configurations_are_frozen() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        House().total = 3  # type: ignore[misc]  # what is tested


def test_everything_wrong_with_a_file_is_reported_at_once() -> None:
    values = {
        "inside": {"colour": "bleu", "litres": 0, "coat": 3},
        "outside": {"coats": 11},
        "walls": [{"name": "a"}, {"height": "high"}, 7],
        "doors": [1, "two", None],
        "total": True,
        "garden": {},
    }
    assert problems_of(values, "roof=1") == [
        "walls.2: must be a section (KEY: VALUE lines), not 7",
        "doors.1: must be a whole number, not 'two'",
        "doors.2: must be a whole number, not null",
        "total: must be a whole number, not true",
        "inside.colour: must be one of red or blue, not 'bleu'; did you mean blue?",
        "inside.litres: must be a number greater than 0 and of at most 100, not 0",
        "inside.coat: unknown key; did you mean coats?",
        "outside.coats: is 11, more than area (10)",
        "walls.1.height: must be a number, not 'high'",
        "walls.1.name: is required. Name.",
        "garden: unknown key; this section has inside, outside, walls, doors, brushes, total",
        "roof: unknown key; this section has inside, outside, walls, doors, brushes, total",
    ]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"inside": {"coats": "2"}}, "inside.coats: must be a whole number of at least 1, not '2'"),
        ({"inside": {"coats": 2.5}}, "inside.coats: must be a whole number of at least 1, not 2.5"),
        ({"inside": {"coats": True}}, "inside.coats: must be a whole number of at least 1, not true"),
        ({"inside": {"litres": True}}, "inside.litres: must be a number greater than 0 and of at most 100, not true"),
        (
            {"inside": {"litres": float("nan")}},
            "inside.litres: must be a number greater than 0 and of at most 100, not nan",
        ),
        ({"inside": {"litres": 101}}, "inside.litres: must be a number greater than 0 and of at most 100, not 101"),
        (
            {"inside": {"coats": 10**30}},
            "inside.coats: must be a whole number of at least 1, not 1000000000000000000000000000000; the largest "
            "possible is 9223372036854775807",
        ),
        (
            {"inside": {"coats": -(10**20)}},
            "inside.coats: must be a whole number of at least 1, not -100000000000000000000",
        ),
        (
            {"walls": [{"name": "a", "height": 10**400}]},
            f"walls.0.height: must be a number, not 1{'0' * 76}...; the largest possible is 1.7976931348623157e+308",
        ),
        ({"inside": {"glitter": "yes"}}, "inside.glitter: must be true or false, not 'yes'"),
        ({"inside": {"glitter": 1}}, "inside.glitter: must be true or false, not 1"),
        ({"inside": {"file": 3}}, "inside.file: must be a path, or null, not 3"),
        ({"inside": None}, "inside: must be a section (KEY: VALUE lines), not null"),
        ({"inside": [1]}, "inside: must be a section (KEY: VALUE lines), not [1]"),
        ({"walls": {"name": "a"}}, "walls: must be a list, each item a section (KEY: VALUE lines), not a section"),
        ({"walls": [{"name": 3}]}, "walls.0.name: must be text, not 3; put it in quotes"),
        ({"brushes": "a"}, "brushes: must be a list, each item a path, or null, not 'a'; put it in brackets: [a]"),
        ({"doors": 3}, "doors: must be a list, each item a whole number, or null, not 3; put it in brackets: [3]"),
        ({"doors": "a"}, "doors: must be a list, each item a whole number, or null, not 'a'"),
        ({"inside": {"file": "a\0"}}, "inside.file: must be a path, or null, not 'a\\x00'"),
        ({"inside": {"colour": "aed"}}, "inside.colour: must be one of red or blue, not 'aed'"),
        ({"name": "a"}, "name: unknown key here; it belongs in walls"),
        ({"inside.coats": 3}, "inside.coats: unknown key; write coats below inside, on a line of its own"),
        ({"inside.": 3}, "inside.: unknown key 'inside.'; did you mean inside?"),
        ({"inside.trim": 3}, "inside.trim: unknown key; write trim below inside, on a line of its own"),
        (
            {"roof.trim": 3},
            "roof.trim: unknown key 'roof.trim'; this section has inside, outside, walls, doors, brushes, total",
        ),
        (
            {"inside": {"": 3}},
            "inside: unknown key ''; this section has colour, litres, coats, area, file, lead, glitter, bucket",
        ),
        ({"inside": {"c\u043eats": 3}}, "inside.c\u043eats: unknown key 'c\\u043eats'; did you mean coats?"),
        ({"inside": {"coats ": 3}}, "inside.coats : unknown key 'coats '; did you mean coats?"),
        ({"inside": {"height": 2}}, "inside.height: unknown key here; it belongs in walls"),
    ],
)
def test_a_value_of_the_wrong_kind_is_refused_in_plain_words(value: dict[str, Any], message: str) -> None:
    assert problems_of(value) == [message]


def test_an_error_that_a_validator_of_pydantic_raises_is_shown_in_its_own_words() -> None:
    class Fence(BaseConfig):
        """A fence."""

        height: int = 1
        """Height."""

        @field_validator("height")
        @classmethod
        def is_low(cls, height: int) -> int:
            if height > 2:
                raise ValueError(f"is {height}, too high")
            return height

        def problems(self) -> Iterator[Problem]:
            assert self.height > 0, "somebody dug"
            yield from ()

    with pytest.raises(ConfigError, match=r"^height: is 3, too high$"):
        Fence.from_dict({"height": 3})
    with pytest.raises(ConfigError, match=r"^somebody dug"):
        Fence.from_dict({"height": 0})


def test_whole_numbers_may_be_written_with_an_exponent() -> None:
    coats = Paint.from_str("litres: 1e1\ncoats: 1e1").coats
    assert coats == 10
    assert type(coats) is int


def test_checks_between_sections_run_when_another_section_is_wrong() -> None:
    values = {"outside": {"colour": "red"}, "walls": [{"name": 3}]}
    assert problems_of(values) == [
        "walls.0.name: must be text, not 3; put it in quotes",
        "inside.colour: is red like outside.colour; choose another",
    ]


def test_checks_between_sections_do_not_run_on_wrong_sections() -> None:
    assert problems_of({"inside": {"colour": "blue", "coats": 0}}) == [
        "inside.coats: must be a whole number of at least 1, not 0"
    ]


def test_earlier_names_are_accepted_also_by_overrides() -> None:
    assert House.from_dict({"outside": {"color": "blue"}}, ["inside.color=red"]).inside.colour is Colour.RED
    assert House.from_dict({"outside": {"color": "red"}}, ["outside.colour=blue"]).outside.colour is Colour.BLUE
    assert problems_of({"outside": {"color": "blue", "colour": "blue"}}) == [
        "outside.color: is the earlier name of colour, which is given too; remove color"
    ]


def test_a_key_without_effect_is_forgotten_with_a_warning() -> None:
    with pytest.warns(ConfigWarning, match=r"^inside\.lead: has no effect: lead is forbidden$") as caught:
        house = House.from_dict({"inside": {"lead": True}})
    assert len(caught) == 1
    assert Path(caught[0].filename) == Path(__file__)
    assert house == House()
    assert "lead" not in house.to_yaml()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        House.from_dict({"inside": {"lead": True}}, quiet=True)
        House.from_dict({"inside": {"lead": False}})


def test_what_this_version_does_not_have_is_refused_by_name() -> None:
    assert problems_of({"inside": {"glitter": True}}) == ["inside.glitter: is not available in this version; remove it"]


def test_null_and_absent_mean_the_same_for_a_derived_value() -> None:
    assert House.from_dict({"inside": {"area": None, "litres": 3}}) == House.from_dict({"inside": {"litres": 3}})


def test_what_the_launcher_sets_is_in_no_file_and_no_digest() -> None:
    here = House(inside=Paint(bucket=3))
    assert here.inside.bucket == 3
    assert here.as_dict() == House().as_dict()
    assert here.digest() == House().digest()
    assert here.digest() != House(inside=Paint(coats=1)).digest()


def test_what_is_written_reads_back_the_same(tmp_path: Path) -> None:
    house = House.from_dict(
        {
            "inside": {"file": "a: b", "litres": 1e-8, "area": 5},
            "walls": [{"name": "1e-4"}, {"name": "no"}, {"name": ""}],
        }
    )
    assert House.from_str(house.to_yaml()) == house
    assert House.from_dict(house.as_dict()) == house
    house.save(tmp_path / "config.yml")
    assert House.from_yaml(tmp_path / "config.yml") == house


def test_a_path_may_begin_with_the_home_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    for given in ("~/x", Path("~/x")):
        assert Paint(file=given).as_dict()["file"] == "/home/me/x"
        assert House.from_dict({"brushes": [given, "~", "a~", "b/~/c"]}).as_dict()["brushes"] == [
            *("/home/me/x", "/home/me", "a~", "b/~/c")
        ]
    assert House.from_dict({"walls": [{"name": "~"}]}).walls[0].name == "~"
    assert House.from_str("inside: {file: ~}").inside.file is None
    assert problems_of({"inside": {"file": "~nobody-of-this-name/x"}}) == [
        "inside.file: must be a path, or null, not '~nobody-of-this-name/x'; there is no such home folder"
    ]


def test_plain_data_holds_neither_paths_nor_enumerations() -> None:
    plain = House(inside=Paint(file=Path("x/y"))).as_dict()["inside"]
    assert plain == {"colour": "red", "litres": 1.0, "coats": 2, "area": 10, "file": "x/y", "glitter": False}


def test_constructing_in_python_gives_the_same_errors() -> None:
    with pytest.raises(ConfigError, match=r"^coats: must be a whole number of at least 1, not 0$"):
        Paint(coats=0)
    with pytest.raises(ConfigError, match=r"2 problems:\n  - inside\.coats: .*\n  - walls\.0\.name: is required"):
        House(inside={"coats": 0}, walls=[{}])
    with pytest.raises(ConfigError, match=r"inside\.colour: is red like"):
        House(inside=Paint(), outside=Paint())


def test_errors_name_the_file(tmp_path: Path) -> None:
    path = tmp_path / "house.yml"
    path.write_text("inside: {coats: 0}\ninside: {coats: 0}\n")
    with pytest.raises(ConfigError) as raised:
        House.from_yaml(path)
    assert str(raised.value) == (
        f"2 problems in {path}:\n"
        "  - inside: is given twice, in lines 1 and 2; remove one of them\n"
        "  - inside.coats: must be a whole number of at least 1, not 0"
    )


def test_files_that_cannot_be_read_or_written_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot read the configuration .*absent\.yml: No such file"):
        House.from_yaml(tmp_path / "absent.yml")
    (tmp_path / "latin.yml").write_bytes(b"walls: [\xe4]")
    with pytest.raises(ConfigError, match=r"latin\.yml is not UTF-8 text \(byte 8\)"):
        House.from_yaml(tmp_path / "latin.yml")
    with (tmp_path / "weights.bin").open("wb") as file:
        file.truncate(2**30)
    with pytest.raises(ConfigError, match=r"weights\.bin has more than \d+ bytes; is it a configuration\?"):
        House.from_yaml(tmp_path / "weights.bin")
    (tmp_path / "bom.yml").write_bytes(b"\xef\xbb\xbfinside: {coats: 3}")
    assert House.from_yaml(str(tmp_path / "bom.yml")).inside.coats == 3
    with pytest.raises(StorageError, match=r"cannot write the configuration to .*: No such file"):
        House().save(tmp_path / "absent" / "config.yml")


def test_every_key_has_a_description_in_the_schema() -> None:
    schema = House.model_json_schema()
    assert schema["$defs"]["Paint"]["properties"]["area"]["anyOf"][1] == {"type": "null"}
    assert schema["$defs"]["Paint"]["properties"]["lead"]["deprecated"] is True
    assert schema["$defs"]["Paint"]["properties"]["glitter"]["deprecated"] is True
    assert schema["$defs"]["Paint"]["properties"]["coats"]["description"] == "Coats."
    assert schema["additionalProperties"] is False


def test_a_check_of_a_field_that_does_not_exist_is_refused_when_the_class_is_made() -> None:
    def match(paint: Paint, wal: Wall) -> Iterator[Problem]:
        yield Problem("wall", "is never looked at")

    with pytest.raises(TypeError, match=r"House\.cross_checks: match asks for wal, .* did you mean wall\?"):

        class House(BaseConfig):
            cross_checks = (match,)
            paint: Paint = Paint()
            wall: Wall | None = None


def test_a_key_like_an_earlier_name_is_told_the_present_one() -> None:
    with pytest.raises(ConfigError, match=r"colors: unknown key; did you mean colour\?"):
        Paint.from_dict({"colors": "red"})
    with pytest.raises(ConfigError, match=r"colo_r: unknown key; did you mean colour\?"):
        Paint.from_dict({"colo_r": "red"})
