"""Templates with hostile values in every place: what is shown changes, the page does not."""

from __future__ import annotations

import datetime
import itertools
from typing import Any
from urllib.parse import urljoin, urlsplit

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from dserverfs.server.database.item_pages import ItemPage, ListedItem
from dserverfs.server.pages import readme, rendering
from dserverfs.server.pages.readme import Node, Readme
from tests.support.html_pages import HtmlPage

PAYLOADS = [
    "<script>alert(1)</script>",
    '"><script>alert(1)</script>',
    "' onmouseover='alert(1)",
    '" autofocus onfocus="alert(1)" x="',
    "javascript:alert(1)",
    "</textarea></title></style><img src=x onerror=alert(1)>",
    "<!--",
    "-->",
    "]]>",
    "{{ 7 * 7 }}{% raw %}",
    "&lt;script&gt;&#x3c;",
    "//elsewhere.example/x",
    "https://elsewhere.example",
    "\\\\elsewhere.example",
    "?q=1&path=2#items",
    "\u202egpj.exe",
    "<svg/onload=alert(1)>",
    "%3Cscript%3E",
    "\x00\x0b<script\x00>",
    "",
]
HOSTILE = st.sampled_from(PAYLOADS) | st.text(max_size=40)
MOMENT = datetime.datetime(2026, 1, 2, 3, 4)


def pages_with(text: str) -> dict[str, dict[str, Any]]:
    """Return all templates, with values that have `text` wherever others can put one."""
    dataset = {
        **{"name": text, "creator_username": text, "base_uri": text, "uuid": text, "uri": text},
        **{"tags": [text], "frozen_at": MOMENT, "created_at": 0.0},
        **{"number_of_items": 1, "size_in_bytes": 1},
    }
    tree = Node(parts=(Node(text, key=text), Node(key=text, parts=(Node(text),))), is_mapping=True)
    every = {"root": "../", "username": f"u{text}"}
    found = ItemPage([ListedItem(text, 1)], True)
    shown = {
        **{"dataset": dataset, "client_uri": text, "server": text, "tags": [text, text]},
        **{"annotations": {text: {text: [text]}, "annotation of ours": text}, "found": found},
        **{"part": f"p{text}", "after": f"a{text}"},
    }
    return {
        "start.html": {
            **every,
            "chosen": dict.fromkeys(("q", "tag", "creator", "base_uri", "sort"), f"c{text}"),
            "query": {"q": text},
            **{"sorts": {"newest": "newest first"}, "datasets": [dataset], "count": 100},
            **{"page": 2, "last_page": 4},
        },
        "dataset.html": {**every, **shown, "readme": Readme(text, False, tree)},
        "dataset.html without a tree": {
            **{**every, **shown},
            "readme": Readme(f"r{text}", True, None),
        },
        "login.html": {**every, "back_to": text, "message": f"m{text}"},
        "error.html": {**every, "title": text, "message": text},
    }


def drawn(text: str) -> dict[str, HtmlPage]:
    return {
        name: HtmlPage(rendering.render(name.partition(" ")[0], values))
        for name, values in pages_with(text).items()
    }


HARMLESS = drawn("text")


@settings(max_examples=25, deadline=None)
@given(HOSTILE)
def test_no_value_of_others_changes_what_a_page_is_made_of(text: str) -> None:
    for name, page in drawn(text).items():
        harmless = HARMLESS[name].elements

        assert [each.name for each in page.elements] == [each.name for each in harmless]
        for element, other in zip(page.elements, harmless, strict=True):
            assert element.attributes.keys() == other.attributes.keys(), name
            for attribute in ("href", "action", "src"):
                if attribute in element.attributes:
                    where = urljoin("https://here/browse/x", element.attributes[attribute])
                    assert urlsplit(where)[:2] == ("https", "here"), (name, where)


for payload in PAYLOADS:
    test_no_value_of_others_changes_what_a_page_is_made_of = example(payload)(
        test_no_value_of_others_changes_what_a_page_is_made_of
    )


def test_pages_have_no_script_and_no_style_of_their_own() -> None:
    for name, page in HARMLESS.items():
        assert {each.name for each in page.elements}.isdisjoint(
            {"script", "style", "iframe", "object", "img", "base"}
        ), name
        attributes = {key for each in page.elements for key in each.attributes}
        assert not {key for key in attributes if key.startswith("on") or key == "style"}, name


@pytest.mark.parametrize("name", HARMLESS)
def test_pages_can_be_read_aloud_and_walked_by_keyboard(name: str) -> None:
    elements = HARMLESS[name].elements
    names = [each.name for each in elements]
    ids = [each.attributes["id"] for each in elements if "id" in each.attributes]
    labelled = {each.attributes["for"] for each in elements if each.name == "label"}
    headings = [int(each[1]) for each in names if each in ("h1", "h2", "h3")]

    assert next(each for each in elements if each.name == "html").attributes["lang"] == "en"
    assert [names.count(each) for each in ("header", "main", "footer", "h1", "title")] == [1] * 5
    assert next(each for each in elements if each.name == "a").attributes["href"] == "#main"
    assert headings[0] == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(headings))
    assert len(ids) == len(set(ids))
    for each in elements:
        attributes = each.attributes
        if each.name in ("input", "select") and attributes.get("type") != "hidden":
            assert attributes["id"] in labelled, attributes
        for reference in ("aria-labelledby", "aria-describedby"):
            assert attributes.get(reference, ids[0]) in ids
        if each.name in ("nav", "ul") and "aria-label" in attributes:
            assert attributes["aria-label"]


def test_values_that_turn_the_direction_of_text_are_shown_as_what_they_are() -> None:
    text = drawn("\u202egpj.exe")["dataset.html"].text

    assert "\\u202egpj.exe" in text


def test_long_values_are_cut() -> None:
    for value in ("x" * 100_000, ["x" * 100_000], {"x" * 100_000: 1}):
        shown = rendering._shown(value)
        assert len(shown) < 3000
        assert shown.endswith(" ...")


# README


def tree_of(text: str) -> Node | None:
    return readme.read(text).tree


def test_readme_is_a_tree_of_texts_as_they_are_written() -> None:
    tree = tree_of("a: 0012\nb: [2020-01-02, yes, {c: ~}]\n? d\n: |\n  two\n  lines\n")

    assert tree == Node(
        is_mapping=True,
        parts=(
            Node("0012", key="a"),
            Node(
                key="b",
                parts=(
                    Node("2020-01-02"),
                    Node("yes"),
                    Node(is_mapping=True, parts=(Node("~", key="c"),)),
                ),
            ),
            Node("two\nlines\n", key="d"),
        ),
    )


ALIASES = "\n".join(
    ["a0: &a0 [x, x]", *(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]" for n in range(1, 40))]
)


@pytest.mark.parametrize(
    "text",
    [
        *("", "plain text", "- a\n- b", "a: b: c", "a: [", "\ta: b", "a: \x00", "a: *b"),
        *("a: 1\n---\nb: 2", "? [a]\n: b", "a: &a [*a]", "a: &a {b: *a}", "%YAML 9.9\n---\na: 1"),
        *('a: "\\U00110000"', 'a: "\\ud800"', '"\\udfff": a', 'a: "\\Uffffffff"'),
        *("{a: " * 2000, "a: " + "[" * 3000),
        *(ALIASES, "a: [" + "x, " * 2000 + "]", "a: b\n" * 10_000),
        *("a: " + "[" * 13 + "]" * 13, "a: " + "x" * 17_000),
    ],
    ids=lambda text: ascii(text)[:20],
)
def test_readme_that_is_no_small_mapping_is_shown_as_it_is_written(text: str) -> None:
    found = readme.read(text)

    assert found == (text, False, None)


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=200) | st.text("a:-[]{}&*!|>?%@\"'#, \n\t~0", max_size=200))
def test_any_readme_can_be_shown(text: str) -> None:
    found = readme.read(text)

    assert found.text == text
    assert found.tree is None or found.tree.is_mapping


def test_long_readme_is_cut() -> None:
    found = readme.read("a: b\n" * 100_000)

    assert found.is_cut
    assert len(found.text) == 64 * 1024
    assert found.tree is None
