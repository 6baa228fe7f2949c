"""Every format becomes tokens and weights, and what is wrong with a record is said with its values."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from scaling.core.errors import DataError
from scaling.transformer.data.records.conversation import TrainOn
from scaling.transformer.data.records.encode import RecordEncoder
from scaling.transformer.data.records.fields import Refusal
from scaling.transformer.data.records.formats import RecordFormat, recognise, unknown_format
from scaling.transformer.data.records.record import Record
from tests.transformer.data.records.chat import chat_template, encoder, talk, tokenizer

HERE = Path(".")
USER, ANSWER = {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}


def encode(value: Any, form: RecordFormat, train_on: TrainOn = TrainOn.ASSISTANT, folder: Path = HERE) -> Any:
    (made,) = encoder(chat_template(), train_on=train_on).encode([value], form, folder=folder)
    return made


def spoken(record: Any) -> tuple[str, str]:
    """Return the text of a record, and that of what counts."""
    assert isinstance(record, Record), record
    ids = record.tokens.tolist()
    chosen = [token for token, weight in zip(ids, record.weights, strict=True) if weight]
    return tuple(tokenizer().decode(one, skip_special_tokens=False) for one in (ids, chosen))  # type: ignore[return-value]  # two


def chatml(*contents: str, system: str | None = None) -> str:
    return chat_template().render(talk(*contents, system=system))[0]


END = "<|endoftext|>"
GOOD: list[tuple[Any, RecordFormat, str, str]] = [
    ({"prompt": "1 + 1 =", "completion": " 2"}, RecordFormat.PROMPT_COMPLETION, f"1 + 1 = 2{END}", f" 2{END}"),
    ({"prompt": "", "completion": "ab" * 9}, RecordFormat.PROMPT_COMPLETION, "ab" * 9 + END, ""),
    ({"prompt": ["a", "b"], "completion": "c"}, RecordFormat.PROMPT_COMPLETION, f"abc{END}", f"c{END}"),
    (
        {"prompt": [USER], "completion": [ANSWER]},
        RecordFormat.PROMPT_COMPLETION,
        chatml("a", "b"),
        "b<|im_end|>\n",
    ),
    ({"instruction": "Add", "input": "", "output": "3"}, RecordFormat.ALPACA, chatml("Add", "3"), "3<|im_end|>\n"),
    (
        {"instruction": "i", "input": "x", "output": "o", "system": "s", "history": [["q", "a"]]},
        RecordFormat.ALPACA,
        chatml("q", "a", "i\nx", "o", system="s"),
        "a<|im_end|>\no<|im_end|>\n",
    ),
    (
        {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}], "system": "s"},
        RecordFormat.SHAREGPT,
        chatml("q", "a", system="s"),
        "a<|im_end|>\n",
    ),
    ({"messages": [USER, ANSWER], "id": 7}, RecordFormat.MESSAGES, chatml("a", "b"), "b<|im_end|>\n"),
    (
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}], "name": None}, ANSWER]},
        RecordFormat.MESSAGES,
        chatml("a", "b"),
        "b<|im_end|>\n",
    ),
    (
        [{"type": "text", "content": "Q: 1"}, {"type": "text", "content": " A: 2", "has_loss": True}],
        RecordFormat.PIECES,
        "Q: 1 A: 2",
        " A: 2",
    ),
    ({"text": "def f"}, RecordFormat.TEXT, f"def f{END}", f" f{END}"),
]


@pytest.mark.parametrize(("value", "form", "text", "counted"), GOOD, ids=lambda value: repr(value)[:40])
def test_a_format_is_recognised_and_becomes_text_of_which_a_part_counts(
    value: Any, form: RecordFormat, text: str, counted: str
) -> None:
    assert recognise(value) is form
    whole, chosen = spoken(encode(value, form))
    assert whole == text
    # Nothing predicts the first token, which therefore never counts.
    assert chosen == (counted or whole[len(tokenizer().decode([tokenizer().encode(whole)[0]])) :])
    assert spoken(encode(value, form, TrainOn.ALL))[1] in whole[1:]


def test_tokens_with_labels_are_taken_as_they_are_without_padding() -> None:
    value = {"input_ids": [7, 5, 6, 9, 0], "labels": [-100, -100, 6, 9, -100], "attention_mask": [1, 1, 1, 1, 0]}
    assert recognise(value) is RecordFormat.TOKENS
    made = encode(value, RecordFormat.TOKENS)
    assert (made.tokens.tolist(), made.weights.tolist()) == ([7, 5, 6, 9], [0, 0, 1, 1])
    parts = {"input_ids": [1, 2, 3, 4, 5], "labels": [-100, 2, -100, 4, 5]}
    assert encode(parts, RecordFormat.TOKENS, TrainOn.LAST).weights.tolist() == [0, 0, 0, 1, 1]
    assert encode(parts, RecordFormat.TOKENS, TrainOn.ALL).weights.tolist() == [0, 1, 1, 1, 1]
    assert not encode({"input_ids": [1, 2], "labels": [-100, -100]}, RecordFormat.TOKENS).counts


def test_a_prompt_has_the_tokens_that_it_has_when_it_is_asked() -> None:
    made = encode({"prompt": "def retu", "completion": "rn"}, RecordFormat.PROMPT_COMPLETION)
    asked, answer = tokenizer().encode("def retu"), tokenizer().encode("rn")
    assert made.tokens.tolist() == [*asked, *answer, tokenizer().eos_token_id]
    assert made.weights.tolist() == [0] * len(asked) + [1] * (len(answer) + 1)


def test_the_last_piece_that_is_to_be_learnt_can_count_alone() -> None:
    value = [{"type": "text", "content": text, "has_loss": text != "q"} for text in ("q", "one", "q", "two", "q")]
    assert spoken(encode(value, RecordFormat.PIECES, TrainOn.LAST))[1] == "two"


def test_special_tokens_in_texts_without_a_template_stay_text() -> None:
    made = encode({"prompt": f"a{END}", "completion": f"b{END}<|im_end|>"}, RecordFormat.PROMPT_COMPLETION)
    assert spoken(made)[0] == f"a{END}b{END}<|im_end|>{END}"
    assert made.tokens.tolist().count(tokenizer().eos_token_id) == 1


BAD: list[tuple[RecordFormat, Any, str]] = [
    (RecordFormat.MESSAGES, {"messages": []}, "'messages' is empty"),
    (RecordFormat.MESSAGES, {"messages": "hi"}, "'messages' is text, not a list"),
    (RecordFormat.MESSAGES, {"mesages": []}, "no field 'messages'.*is 'mesages' meant for it"),
    (RecordFormat.MESSAGES, ["a"], "the record is a list, not an object"),
    (RecordFormat.MESSAGES, {"messages": ["a"]}, "message 1 of 'messages' is text, not an object"),
    (RecordFormat.MESSAGES, {"messages": [{"content": "a"}]}, "message 1 of 'messages' has no field 'role'"),
    (RecordFormat.MESSAGES, {"messages": [{"role": "user"}]}, "message 1 of 'messages' has no field 'content'"),
    (RecordFormat.MESSAGES, {"messages": [{"role": "bot", "content": "a"}]}, "unknown role 'bot'; the roles are"),
    (RecordFormat.MESSAGES, {"messages": [{"role": "user", "content": 5}]}, "'content' of .* is a number, not text"),
    (RecordFormat.MESSAGES, {"messages": [USER, {**ANSWER, "content": ""}]}, "message 2 .* is empty"),
    (RecordFormat.MESSAGES, {"messages": [ANSWER]}, "message 1 is of 'assistant', the first turn; 'user' is due"),
    (RecordFormat.MESSAGES, {"messages": [USER, USER]}, "message 2 is of 'user', behind one of 'user'"),
    (RecordFormat.MESSAGES, {"messages": [USER, {"role": "tool", "content": ""}]}, "message 2 is of 'tool'"),
    (RecordFormat.MESSAGES, {"messages": [USER, {"role": "system", "content": ""}]}, "may only be the first"),
    (RecordFormat.MESSAGES, {"messages": talk(system="s")}, "empty but for the system's message"),
    (RecordFormat.MESSAGES, {"messages": [USER, {**ANSWER, "weight": -1}]}, "the weight of message 2 .* is -1"),
    (RecordFormat.MESSAGES, {"messages": [USER, {**ANSWER, "weight": "1"}]}, "the weight of message 2 .* is '1'"),
    (RecordFormat.MESSAGES, {"messages": [{**USER, "weight": 1}, ANSWER]}, "is of 'user' and has a weight of 1"),
    (
        RecordFormat.MESSAGES,
        {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
        "part 1 of 'content' of message 1 .* is of the type 'image_url'",
    ),
    (RecordFormat.MESSAGES, {"messages": [USER, ANSWER], "tools": "[{"}, "'tools' is text that is not JSON"),
    (RecordFormat.MESSAGES, {"messages": [USER, {**ANSWER, "content": "a\0"}]}, "a NUL character"),
    (RecordFormat.MESSAGES, {"messages": [USER, {**ANSWER, "content": "\ud800"}]}, "half a surrogate pair"),
    (RecordFormat.MESSAGES, {"text": "a"}, "a record of 'text' among those of 'messages': "),
    (RecordFormat.SHAREGPT, {"conversations": [{"from": "man", "value": "a"}]}, "message 1 has the unknown role 'man'"),
    (RecordFormat.SHAREGPT, {"conversations": [{"value": "a"}]}, "message 1 has no field 'from'"),
    (RecordFormat.SHAREGPT, {"conversations": [{"from": "gpt", "value": "a"}]}, "wrong order of roles"),
    (RecordFormat.SHAREGPT, {"conversations": [{"from": "gpt", "value": ""}]}, "message 1 is empty"),
    (RecordFormat.ALPACA, {"instruction": "a"}, "no field 'output'; its fields are 'instruction'"),
    (RecordFormat.ALPACA, {"instruction": "a", "output": ["b"]}, "'output' is a list, not text"),
    (RecordFormat.ALPACA, {"instruction": "a", "output": ""}, "'output' is empty"),
    (
        RecordFormat.ALPACA,
        {"instruction": "a", "output": "b", "history": {"q": "a"}},
        "'history' is an object, not a list",
    ),
    (RecordFormat.ALPACA, {"instruction": "a", "output": "b", "history": [["q"]]}, "'history' has 1 elements"),
    (RecordFormat.PROMPT_COMPLETION, {"prompt": "a"}, "no field 'completion'"),
    (RecordFormat.PROMPT_COMPLETION, {"prompt": "a", "completion": ""}, "no text to learn"),
    (RecordFormat.PROMPT_COMPLETION, {"prompt": 1, "completion": "b"}, "'prompt' is a number, not text"),
    (RecordFormat.PROMPT_COMPLETION, {"prompt": "a", "completion": [ANSWER]}, "'prompt' is text, not a list"),
    (RecordFormat.PROMPT_COMPLETION, {"prompt": [ANSWER], "completion": [ANSWER]}, "wrong order of roles"),
    (RecordFormat.PIECES, [], "the record is empty"),
    (RecordFormat.PIECES, [{"type": "image", "content": "a.jpg"}], "element 1 is of the type 'image'"),
    (RecordFormat.PIECES, [{"content": "a"}], "element 1 has no field 'type'"),
    (RecordFormat.PIECES, [{"type": "text", "content": "a", "has_loss": 1}], "'has_loss' of element 1 is a number"),
    (RecordFormat.PIECES, [{"type": "text", "content": ""}], "it has no tokens"),
    (RecordFormat.TEXT, {"text": ""}, "no text to learn"),
    (RecordFormat.TOKENS, {"input_ids": [1]}, "no field 'labels'"),
    (RecordFormat.TOKENS, {"input_ids": [1, 2], "labels": [1]}, "'input_ids' has 2 elements, 'labels' 1"),
    (RecordFormat.TOKENS, {"input_ids": [1], "labels": [2]}, "element 0 of 'labels' is 2, neither -100 nor the token"),
    (RecordFormat.TOKENS, {"input_ids": [1.5], "labels": [1]}, "element 0 of 'input_ids' is a number, not a whole"),
    (RecordFormat.TOKENS, {"input_ids": [99999], "labels": [-100]}, "token 0 is 99999, which is outside the vocab"),
    (RecordFormat.TOKENS, {"input_ids": [1, -1], "labels": [1, -1]}, "token 1 is -1, which is outside"),
    (RecordFormat.TOKENS, {"input_ids": [10**30], "labels": [-100]}, "is outside the vocabulary"),
    (RecordFormat.TOKENS, {"input_ids": [1], "labels": [1], "attention_mask": [2]}, "'attention_mask' is 2"),
    (RecordFormat.TOKENS, {"input_ids": [1], "labels": [1], "attention_mask": [0]}, "it has no tokens"),
    (
        RecordFormat.TOKENS,
        {"input_ids": [1, 2, 3], "labels": [1, 2, 3], "attention_mask": [1, 0, 1]},
        "'attention_mask' has a gap",
    ),
]


@pytest.mark.parametrize(("form", "value", "reason"), BAD, ids=lambda value: repr(value)[:40])
def test_what_is_wrong_with_a_record_is_said(form: RecordFormat, value: Any, reason: str) -> None:
    made = encode(value, form)
    assert isinstance(made, Refusal), made
    with pytest.raises(Refusal, match=reason):
        raise made


def test_a_record_that_is_nested_without_end_is_refused() -> None:
    deep: Any = "a"
    for _ in range(20_000):
        deep = [deep]
    assert isinstance(encode({"messages": [USER, {**ANSWER, "x": deep}]}, RecordFormat.MESSAGES), Refusal)


def test_an_image_in_a_prompt_is_refused_and_the_name_of_none_is_text(tmp_path: Path) -> None:
    value = {"prompt": ["see", "cat.jpg"], "completion": "a cat"}
    assert spoken(encode(value, RecordFormat.PROMPT_COMPLETION, folder=tmp_path))[0] == f"seecat.jpga cat{END}"
    (tmp_path / "cat.jpg").touch()
    assert "has an image, cat.jpg" in str(encode(value, RecordFormat.PROMPT_COMPLETION, folder=tmp_path))


def test_an_unknown_format_is_named_with_those_that_there_are() -> None:
    assert recognise({"question": "a"}) is None
    assert recognise("text") is None
    assert "fields 'question', which is no known format of records; the formats are prompt" in unknown_format(
        {"question": "a"}
    )


def test_conversations_without_a_template_and_unknown_end_tokens_are_refused() -> None:
    with pytest.raises(DataError, match="'messages' are conversations, and the tokenizer has no chat template"):
        encoder().encode([{"messages": [USER, ANSWER]}], RecordFormat.MESSAGES, folder=HERE)
    with pytest.raises(DataError, match="the end-of-document token 9999999 is none of the tokenizer's"):
        encoder(eos_token_id=9_999_999)


def test_tokens_beyond_the_models_vocabulary_are_refused() -> None:
    by: RecordEncoder = encoder(chat_template(), vocab_size=300)
    (made,) = by.encode([{"messages": [USER, ANSWER]}], RecordFormat.MESSAGES, folder=HERE)
    assert "outside the vocabulary of 300 (0 to 299)" in str(made)
