"""A template that makes too much, or computes without end, is stopped, and what it is stopped for is said."""

from __future__ import annotations

import resource
import time

import pytest

from scaling.core.errors import DataError
from scaling.transformer.data.records import limits
from scaling.transformer.data.records.fields import Refusal
from scaling.transformer.data.records.template import ChatTemplate
from tests.transformer.data.records.chat import talk

TOO_MUCH = [
    "{{ 'a' * 10**10 }}",
    "{{ ['a'] * 10**10 }}",
    "{{ 10**9 * 'a' }}",
    "{{ '%9999999999d' % 1 }}",
    "{{ '%*d' % (9999999999, 1) }}",
    "{{ '%9999999999d' | format(1) }}",
    "{{ '{:>9999999999}'.format(1) }}",
    "{{ '{:>{}}'.format(1, 9999999999) }}",
    "{{ '{:>{w}}'.format_map({'w': 9999999999}) }}",
    "{{ 'a'.ljust(10**10) }}{{ 'a'.zfill(10**10) }}",
    "{{ 'a' | center(9999999999) }}",
    "{{ 'a' | center(width=9999999999) }}",
    "{{ 'a\nb' | indent(9999999999) }}",
    "{{ ['a'] | tojson(indent=9999999999) }}",
    "{{ '\t'.expandtabs(10**10) }}",
    "{{ (['a'] | slice(9999999999)) | list }}",
    "{{ (['a'] | batch(9999999999, 'b')) | list }}",
    "{% set a = 'a' * 100000 %}{{ a.replace('a', a) }}",
    "{% set a = 'a' * 100000 %}{{ a | replace('', a) }}",
    "{% set a = 'a' * 100000 %}{{ a.join(a) }}",
    "{% set a = 'a' * 100000 %}{{ range(1000) | map('string') | join(a) }}",
    "{% set a = 'a' * 100000 %}{{ a.translate({97: a}) }}",
    "{% set a = 'a' * 100000 %}{{ ('%(a)s' * 10000) % {'a': a} }}",
    "{{ 1 .to_bytes(9999999999, 'big') }}",
    "{{ [[1]] | sum(start=[]) }}",
    "{% set n = namespace(a='a') %}{% for i in range(99) %}{% set n.a = n.a ~ n.a %}{% endfor %}",
    "{% set n = namespace(a='a') %}{% for i in range(99) %}{% set n.a = n.a + n.a %}{% endfor %}",
    "{% set n = namespace(a='a') %}{% for i in range(99) %}{% set n.a %}{{ n.a }}{{ n.a }}{% endset %}{% endfor %}",
    "{% set n = namespace(a='a') %}{% for i in range(99) %}{% set n.a = [n.a, n.a] %}{% endfor %}{{ n.a }}",
    "{% set n = namespace(a='a') %}{% for i in range(99) %}{% set n.a = {'a': n.a, 'b': n.a} %}{% endfor %}{{ n.a }}",
    "{% set n = namespace(a='a') %}{% for i in range(99) %}{% set n.a = dict(a=n.a, b=n.a) %}{% endfor %}{{ n.a }}",
    "{% macro f(a) %}{{ a }}{{ a }}{% endmacro %}"
    "{% set n = namespace(a='a') %}{% for i in range(99) %}{% set n.a = f(n.a) %}{% endfor %}",
    "{% set a = 'a' * 10000 %}{% for i in range(99999) %}{{ a }}{% endfor %}",
    "{% set a = 'a' * 10000 %}{% set b %}{% for i in range(99999) %}{{ a }}{% endfor %}{% endset %}",
    "{{ 9 ** (9 ** 9) }}",
    "{% set n = namespace(a=9) %}{% for i in range(99) %}{% set n.a = n.a * n.a %}{% endfor %}",
]
ENDLESS = [
    "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "{% for i in range(99999) if range(9999) | select('none') | list %}{% endfor %}",
    "{% for i in [range(99999)] * 99999 recursive %}{% if i is iterable %}{{ loop(i) }}{% endif %}{% endfor %}",
    "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "{% block a %}{% for i in range(9) %}{{ loop.length }}{% endfor %}{% if messages[0].x == 0 %}{% endif %}"
    "{% for i in range(99999) %}{{ range(99999) | sum }}{% endfor %}{% endblock %}",
]


@pytest.mark.parametrize("source", TOO_MUCH)
def test_what_would_fill_the_memory_is_not_made(source: str) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.thread_time()
    with pytest.raises(Refusal, match=r"^the chat template was stopped: it (makes|computes a number|sums)"):
        ChatTemplate(source).render(talk("a"))
    assert time.thread_time() - started < 5
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 * 2**10


@pytest.mark.parametrize("source", ENDLESS)
def test_what_computes_without_end_is_stopped(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MOST_SECONDS", 0.05)
    started = time.thread_time()
    with pytest.raises(Refusal, match=r"was stopped: it computes for more than 0.05 seconds, or without end"):
        ChatTemplate(source).render(talk("a"))
    assert time.thread_time() - started < 5


@pytest.mark.parametrize(
    "source",
    [
        "{% for i in range(10**9) %}{% endfor %}",
        "{% for i in range(9) recursive %}{% if i %}{{ loop(range(9)) }}{% endif %}{% endfor %}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{% block a %}{{ self.a() }}{% endblock %}",
        "{% include 'a' %}",
    ],
)
def test_what_goes_too_deep_or_elsewhere_fails_with_a_message(source: str) -> None:
    with pytest.raises(Refusal, match=r"the chat template (fails on|refuses) it"):
        ChatTemplate(source).render(talk("a"))


@pytest.mark.parametrize(
    "source", ["{% for i in m %}" * 50 + "{% endfor %}" * 50, f"{{{{ {'(' * 5000}1{')' * 5000} }}}}", "a" * 2**21]
)
def test_what_cannot_be_compiled_is_no_template(source: str) -> None:
    with pytest.raises(DataError, match="the chat template is not a Jinja template"):
        ChatTemplate(source)


def test_what_templates_do_stays_within_the_limits() -> None:
    source = (
        "{% for m in messages[1:] + [1] %}{{ loop.index }}/{{ loop.length }}{{ loop.last }};{% endfor %}"
        "{% for k, v in {'a': 1}.items() %}{{ k ~ v }}{% endfor %}{% set a, b = (1, 2) %}{{ a + b }}"
        "{% set x | upper %}a{% endset %}{{ x }}{{ 'a,b'.split(',') | join('-') }}{{ '-'.join(['a', 'b']) }}"
        "{{ messages | map(attribute='role') | join(', ') }}{{ '%02d' % 3 }}{{ '{:03d}'.format(4) }}"
        "{{ 'a\nb' | indent(2) }}"
        "{% for i in [[1], 2] recursive %}{% if i is iterable %}({{ loop(i) }}){% else %}{{ i }}{% endif %}{% endfor %}"
        "{% for i in nothing %}{% else %}none{% endfor %}{{ 'abc' | center(7) }}"
        "{{ messages | join('', attribute='role') }}"
    )
    text, _ = ChatTemplate(source).render(talk("a", "b"))
    assert text == "1/2False;2/2True;a13Aa-ba-buser, assistant03004a\n  b(1)2none  abc  userassistant"
