"""The command reference has every command with every option."""

from __future__ import annotations

import re
from typing import Annotated

import typer

from docs.generator.commands import described, pages
from scaling.cli.main import SUB_COMMANDS


def test_a_command_is_described_with_its_options() -> None:
    app = typer.Typer(name="paint")

    @app.command()
    def wall(
        path: Annotated[str, typer.Argument(metavar="WALL", help="Which one.")],
        coats: Annotated[int, typer.Option(min=1, metavar="N", help="How many.")] = 2,
    ) -> None:
        """Paint a wall.

        Twice, say.
        """

    @app.command()
    def door() -> None:
        """Paint a door."""

    text = "".join(described(typer.main.get_command(app), "home paint", level=1))
    assert text.startswith("# home paint\n")
    assert "## home paint wall\n\nPaint a wall.\n\nTwice, say.\n" in text
    assert "```{program} home paint wall\n```" in text
    assert re.search(r"```{option} WALL\n\nWhich one\.", text)
    assert re.search(r"```{option} --coats N\n\nHow many\. .*default: 2.*x>=1", text)
    assert "## home paint door\n\nPaint a door.\n" in text


def test_every_command_has_a_page_with_all_its_options() -> None:
    found = dict(pages())
    assert set(found) == {f"{name}.md" for name in SUB_COMMANDS}
    generate = SUB_COMMANDS["generate"].load("generate")
    options = {option for parameter in generate.params for option in parameter.opts if option.startswith("--")}
    assert all(f"```{{option}} {option}" in found["generate.md"] for option in options - {"--help"})
    assert "scaling report [OPTIONS] RUN...\n" in found["report.md"]
    assert not [name for name, text in found.items() if "...." in text]
