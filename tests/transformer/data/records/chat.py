"""Chat templates of the package `trl`, read as data, and a small tokenizer that knows their special tokens."""

from __future__ import annotations

import inspect
import json
import re
import textwrap
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any, Final

from scaling.transformer.data.records.conversation import TrainOn
from scaling.transformer.data.records.encode import RecordEncoder
from scaling.transformer.data.records.template import ChatTemplate
from scaling.transformer.data.tokenizer import Tokenizer, train_tokenizer

SPECIAL: Final = {"bos_token": "<s>", "eos_token": "<|endoftext|>"}
WITH_IMAGES: Final = ("idefics3", "llava_next", "smolvlm")
"""Templates that take a content in parts only, as messages with images have it."""
_TOKENS: Final = re.compile(
    r"<\|[A-Za-z_]+\|>|<\uff5c[^\uff5c'\"]+\uff5c>|<(?:start|end)_of_turn>|<\|turn>|<turn\|>|<eos>|<bos>|<(?:END|START)\w+>"
)
_TAGS: Final = re.compile(r"\{%-?\s*(?:end)?generation\s*-?%\}")
CHATML: Final = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@cache
def template_files() -> Mapping[str, Path]:
    """Return the template files by name; none where the package is not installed."""
    try:
        files = metadata.files("trl") or []
    except metadata.PackageNotFoundError:
        return {}
    return {file.name[: -len(".jinja")]: Path(str(file.locate())) for file in files if file.name.endswith(".jinja")}


def training_templates() -> list[str]:
    return sorted(name for name in template_files() if name.endswith("_training"))


def source_of(name: str) -> str:
    return template_files()[name].read_text(encoding="utf-8")


def without_tags(source: str) -> str:
    """Return the twin of a template: the same text, and nobody says what the assistant writes."""
    # A tag trims spaces around itself; in its place stands one that does the same and nothing else.
    return _TAGS.sub(lambda tag: tag[0].replace("endgeneration", "endif").replace("generation", "if true"), source)


@cache
def tokenizer() -> Tokenizer:
    texts = [textwrap.dedent(inspect.getsource(module)) for module in (json, textwrap, inspect)]
    content = json.loads(train_tokenizer(texts, 600).to_str())
    spelled = {token for name in template_files() for token in _TOKENS.findall(source_of(name))}
    names = sorted(spelled | {"<s>", "<|im_start|>", "<|im_end|>"})
    first = max(token["id"] for token in content["added_tokens"]) + 600
    for number, name in enumerate(names):
        if name not in {token["content"] for token in content["added_tokens"]}:
            content["added_tokens"].append({**content["added_tokens"][0], "id": first + number, "content": name})
    return Tokenizer.from_str(json.dumps(content))


def chat_template(source: str = CHATML) -> ChatTemplate:
    return ChatTemplate(source, special=SPECIAL)


def encoder(
    template: ChatTemplate | None = None, *, train_on: TrainOn = TrainOn.ASSISTANT, **options: Any
) -> RecordEncoder:
    known = tokenizer()
    given: dict[str, Any] = {"format": None, "eos_token_id": known.eos_token_id, "vocab_size": None, **options}
    return RecordEncoder(known, template=template, train_on=train_on, **given)


def talk(*contents: str, system: str | None = None) -> list[dict[str, Any]]:
    """Return messages of user and assistant in turn."""
    turns: Sequence[dict[str, Any]] = [
        {"role": ("user", "assistant")[number % 2], "content": content} for number, content in enumerate(contents)
    ]
    return [*([{"role": "system", "content": system}] if system is not None else []), *turns]
