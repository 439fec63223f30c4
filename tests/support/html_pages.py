"""What a page of HTML is made of, for tests: elements, links, texts."""

from __future__ import annotations

from html.parser import HTMLParser
from typing import NamedTuple


class Element(NamedTuple):
    name: str
    attributes: dict[str, str]


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[Element] = []
        self.texts: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append(Element(tag, {name: value or "" for name, value in attrs}))

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


class HtmlPage:
    def __init__(self, content: str) -> None:
        reader = _Reader()
        reader.feed(content)
        reader.close()
        self.elements = reader.elements
        self.text = " ".join(" ".join(reader.texts).split())

    def links(self, rel: str | None = None) -> list[str]:
        """Return where its links lead; those of one relation if it is given."""
        return [
            each.attributes["href"]
            for each in self.elements
            if each.name == "a" and rel in (None, each.attributes.get("rel"))
        ]

    def value_of(self, field: str) -> str:
        """Return what a field of a form holds."""
        (value,) = (
            each.attributes["value"]
            for each in self.elements
            if each.name == "input" and each.attributes["name"] == field
        )
        return value
