"""Chat templates are found beside the tokenizer, and run in a sandbox with what published ones expect."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from scaling.core.errors import DataError
from scaling.transformer.data.records.fields import Refusal
from scaling.transformer.data.records.template import ChatTemplate
from tests.transformer.data.records.chat import CHATML, talk

OTHER = "{{ bos_token }}{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}"


def beside(folder: Path, **files: str) -> ChatTemplate | None:
    for name, content in files.items():
        (folder / name.replace("__", ".")).write_text(content)
    return ChatTemplate.beside(folder / "vocab.json")


def test_the_template_beside_a_tokenizer_is_found_with_its_special_tokens(tmp_path: Path) -> None:
    config = {"chat_template": OTHER, "bos_token": {"content": "<s>"}, "eos_token": "</s>", "pad_token": None}
    assert beside(tmp_path) is None
    found = beside(tmp_path, tokenizer_config__json=json.dumps(config), special_tokens_map__json='{"bos_token": "<x>"}')
    assert found is not None
    assert found.render(talk("a", "b"))[0] == "<s>a</s>b</s>"
    named = [{"name": "tool_use", "template": "no"}, {"name": "default", "template": "{{ bos_token }}!"}]
    found = beside(tmp_path, tokenizer_config__json=json.dumps({**config, "chat_template": named}))
    assert found is not None
    assert found.render(talk("a"))[0] == "<s>!"
    found = beside(tmp_path, chat_template__jinja="own {{ eos_token }}")
    assert found is not None
    assert found.render(talk("a"))[0] == "own </s>"
    assert ChatTemplate.beside(tmp_path / "other.json") is None  # what lies here need not belong to it
    (tmp_path / "file.txt").write_text(OTHER)
    assert ChatTemplate.from_file(tmp_path / "file.txt").render(talk("a"))[0] == "a"


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"tokenizer_config__json": "{"}, "tokenizer_config.json is not JSON"),
        ({"tokenizer_config__json": '{"chat_template": 5}'}, "chat_template in .* is no text"),
        ({"tokenizer_config__json": '{"chat_template": [{"name": "x"}]}'}, "names 'x', and none of the name 'default'"),
        ({"chat_template__jinja": "a\n{% if %}"}, "chat_template.jinja, line 2 is not a Jinja template"),
    ],
)
def test_a_template_that_is_none_is_refused(tmp_path: Path, files: dict[str, str], message: str) -> None:
    with pytest.raises(DataError, match=message):
        beside(tmp_path, **files)
    with pytest.raises(DataError, match=r"none.jinja cannot be read"):
        ChatTemplate.from_file(tmp_path / "none.jinja")


TOOLS = [{"type": "function", "function": {"name": "f", "description": "größer <b> & 'so'"}}]


@pytest.mark.parametrize(
    "source",
    [
        "{{ messages | tojson }} {{ tools | tojson(indent=2) }} {{ {'b': 1, 'a': 2} | tojson(sort_keys=true) }}",
        "{% for m in messages %}\n  {% if loop.index > 1 %}\n    {% break %}\n {% endif %}\n{{ m.role }}\n{% endfor %}",
        "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}",
        "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}, {% endfor %}{{ dict(a=1)['a'] }}",
        "{{ strftime_now('%Y') }} {{ documents }} {{ add_generation_prompt }} {{ undefined_thing }}|{{ tools[0].x }}",
        "{{ messages[-1].reasoning_content }} {{ messages[-1].thinking }}",
    ],
)
def test_templates_write_what_they_write_in_transformers(source: str) -> None:
    messages: list[dict[str, Any]] = [*talk("é", "<b>"), {"role": "assistant", "content": "", "reasoning": "why"}]
    texts, spans = render_jinja_template(
        [messages], tools=TOOLS, chat_template=source, return_assistant_tokens_mask=True
    )
    tools = TOOLS if "tools" in source else None
    assert ChatTemplate(source).render(messages, tools=tools) == (texts[0], spans[0])


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ messages.append(1) }}",
        "{% set ns = namespace(__class__=1) %}{{ ns }}",
        "{{ dict.__call__.__globals__ }}",
        "{{ namespace.__init__.__globals__ }}",
        "{{ raise_exception.__globals__['json'] }}",
    ],
)
def test_a_template_does_not_get_out_of_its_sandbox(source: str) -> None:
    with pytest.raises(Refusal):
        ChatTemplate(f"{{% set x = 1 %}}{source}").render(talk("a"))


def test_content_in_parts_is_text_for_templates_that_know_no_parts_and_the_other_way_round() -> None:
    text, parts = talk("a"), [{"role": "user", "content": [{"type": "text", "text": "a"}]}]
    plain = ChatTemplate(CHATML)
    assert plain.render(parts) == plain.render(text) == ("<|im_start|>user\na<|im_end|>\n", [])
    visual = ChatTemplate("{% for m in messages %}{% for p in m.content %}{{ p.text }}{% endfor %};{% endfor %}")
    assert visual.render(text) == visual.render(parts) == ("a;", [])


def test_marks_are_seen_however_they_are_written() -> None:
    for tag in ("{% generation %}", "{%- generation -%}", "{%generation%}"):
        assert ChatTemplate(tag + "x" + re.sub("gen", "endgen", tag)).marks
    assert not ChatTemplate("{# {% generation %} #}{{ 'endgeneration' }}").marks
