"""What the site adds to Sphinx: docstrings as plain text, and names in code that lead to where they are described."""

from __future__ import annotations

from collections.abc import Iterator
from enum import Enum
from typing import Any

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment

from docs.generator import api
from docs.generator.docstrings import as_restructured_text
from scaling.core import BaseConfig

_PUBLIC = api.public_names()
_BY_NAME = {name.rpartition(".")[2]: name for name in _PUBLIC.values()}


def show_docstring(app: Sphinx, what: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
    """Turn a docstring into reStructuredText."""
    lines[:] = as_restructured_text(lines)


def show_signature(
    app: Sphinx, what: str, name: str, thing: Any, options: Any, signature: str | None, returns: str | None
) -> tuple[str | None, str | None]:
    """Write the default of a field that a function makes as Python would read it.

    An enumeration is not called, and a section of the configuration would repeat its fields, which follow.
    """
    if isinstance(thing, type) and issubclass(thing, (Enum, BaseConfig)):
        return "", None
    return signature and signature.replace("<factory>", "..."), returns


def find_public(
    app: Sphinx, environment: BuildEnvironment, reference: addnodes.pending_xref, content: nodes.TextElement
) -> nodes.Node | None:
    """Lead a type in a signature to its public name; leave one that has none, PyTorch's too, without a link."""
    if reference.get("refdomain") != "py":
        return None
    target = reference["reftarget"]
    if public := _PUBLIC.get(target):
        domain = environment.domains["py"]
        return domain.resolve_xref(environment, reference["refdoc"], app.builder, "obj", public, reference, content)
    in_signature = any(isinstance(above, addnodes.desc_signature) for above in _above(reference))
    return content if in_signature else None


def _above(node: Any) -> Iterator[nodes.Node]:
    while node is not None:
        yield node
        node = node.parent


def link_names(app: Sphinx, document: nodes.document, page: str) -> None:
    """Make code that is nothing but the name of a setting or of something public a link to its entry."""
    if page.startswith("source/"):
        return
    settings = app.env.domains.standard_domain.objects
    names = app.env.domains.python_domain.objects
    for literal in list(document.findall(nodes.literal)):
        if any(isinstance(above, (nodes.reference, nodes.title, addnodes.desc_signature)) for above in _above(literal)):
            continue
        text = literal.astext()
        name = _BY_NAME.get(text, text)
        if ("confval", text) in settings:
            there, anchor = settings["confval", text]
        elif name in names:
            there, anchor = names[name].docname, names[name].node_id
        else:
            continue
        if there != page:
            address = app.builder.get_relative_uri(page, there)
            link = nodes.reference("", "", internal=True, refuri=f"{address}#{anchor}")
            literal.replace_self(link)
            link += literal


def setup(app: Sphinx) -> dict[str, bool]:
    """Add all of it to Sphinx."""
    app.connect("autodoc-process-docstring", show_docstring)
    app.connect("autodoc-process-signature", show_signature)
    app.connect("missing-reference", find_public)
    app.connect("doctree-resolved", link_names)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
