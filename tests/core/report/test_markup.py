"""Text stays text, whatever it holds."""

from __future__ import annotations

from html.parser import HTMLParser

from hypothesis import given
from hypothesis import strategies as st

from scaling.core.report.markup import Markup, join, table, tag

ANY_TEXT = st.text(alphabet=st.characters(), max_size=40) | st.sampled_from(
    ["</script><script>alert(1)</script>", "\"'><img src=x onerror=y>", "<!--", "]]>", "&amp;", "\ud800", "\x00"]
)


class Elements(HTMLParser):
    """Collects what a browser would see."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.names: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.append(tag)
        self.attributes += attrs

    def handle_data(self, data: str) -> None:
        self.text += data


@given(text=ANY_TEXT, value=ANY_TEXT)
def test_text_and_attributes_bring_no_element_and_no_attribute(text: str, value: str) -> None:
    page = tag("div", text, tag("b", text), title=value, data_x=value)
    page.encode()  # a half of a character cannot be written
    seen = Elements(page)
    assert seen.names == ["div", "b"]
    assert [name for name, _ in seen.attributes] == ["title", "data-x"]
    assert not {"\x00", "\x1b"} & set(page)


@given(text=st.text(alphabet=st.characters(exclude_categories=("Cc", "Cs", "Cn")), max_size=40))
def test_what_may_stand_in_a_page_is_read_back_as_it_was(text: str) -> None:
    seen = Elements(tag("p", text, title=text))
    assert seen.text == text
    assert seen.attributes == [("title", text)]


def test_attributes_may_be_left_out_or_have_no_value() -> None:
    assert tag("input", hidden=True, checked=False, name=None, class_="a") == '<input hidden class="a">'


def test_markup_is_not_escaped_twice() -> None:
    assert tag("p", tag("b", "1 < 2"), None, " & ") == "<p><b>1 &lt; 2</b> &amp; </p>"
    assert join(["<", Markup("<br>"), 3]) == "&lt;<br>3"


def test_a_table_names_its_columns_and_rows() -> None:
    seen = Elements(table(["", "a"], [("loss", "1")]))
    assert ("scope", "col") in seen.attributes
    assert ("scope", "row") in seen.attributes
    assert "thead" not in Elements(table(["", ""], [("loss", "1")])).names
