"""Datasets as HTML, for notebooks. Everything that others wrote is escaped."""

from __future__ import annotations

import datetime
import html
import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

from dserverfs.base.errors import DserverfsError
from dserverfs.base.printable import printable, size

MAX_ITEMS = 10
MAX_README_CHARACTERS = 1000
_LEFT = ' style="text-align: left"'


class ShownItem(Protocol):
    """What is shown of an item."""

    @property
    def relpath(self) -> str: ...
    @property
    def size(self) -> int: ...
    @property
    def hash(self) -> str: ...


class Shown(Protocol):
    """What is shown of a dataset."""

    @property
    def name(self) -> str: ...
    @property
    def uri(self) -> str: ...
    @property
    def creator(self) -> str: ...
    @property
    def frozen_at(self) -> datetime.datetime: ...
    @property
    def readme(self) -> str: ...
    @property
    def tags(self) -> Sequence[str]: ...
    @property
    def annotations(self) -> Mapping[str, Any]: ...
    @property
    def items(self) -> Mapping[str, ShownItem]: ...
    @property
    def size(self) -> int: ...
    @property
    def known_size(self) -> int | None: ...


def page(dataset: Shown) -> str:
    """Return a dataset with its tags, annotations, README's beginning and first items."""
    parts = [f"<b>{_text(dataset.name)}</b> <code>{_text(dataset.uri)}</code>"]
    try:
        tags, readme = dataset.tags, dataset.readme
        annotations = dataset.annotations
        first = list(itertools.islice(dataset.items.values(), MAX_ITEMS))
        number, total = len(dataset.items), dataset.size
    except DserverfsError as error:  # a notebook shows what there is
        return f"<div>{parts[0]}<p>{_text(str(error))}</p></div>"
    facts = [
        ("creator", dataset.creator),
        ("frozen", f"{dataset.frozen_at:%Y-%m-%d %H:%M} UTC"),
        ("items", f"{number:,}"),
        ("size", size(total)),
        ("tags", ", ".join(tags)),
        *((name, str(value)) for name, value in sorted(annotations.items())),
    ]
    parts.append(_table((), ((name, value) for name, value in facts if value)))
    if readme.strip():
        cut = readme[:MAX_README_CHARACTERS]
        parts.append(f"<pre{_LEFT}>{_lines(cut)}{'…' if len(readme) > len(cut) else ''}</pre>")
    rows = [(item.relpath, size(item.size), item.hash) for item in first]
    if number > len(rows):
        rows.append((f"… {number - len(rows):,} more", "", ""))
    parts.append(_table(("item", "size", "hash"), rows))
    return f"<div>{''.join(parts)}</div>"


def table(datasets: Sequence[Shown]) -> str:
    """Return datasets as a table, without a request."""
    rows = (
        (each.name, each.creator, f"{each.frozen_at:%Y-%m-%d}", _known_size(each), each.uri)
        for each in datasets
    )
    return _table(("name", "creator", "frozen", "size", "URI"), rows)


def _known_size(dataset: Shown) -> str:
    known = dataset.known_size
    return "" if known is None else size(known)


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    head = "".join(f"<th{_LEFT}>{_text(each)}</th>" for each in heads)
    body = "".join(
        "<tr>" + "".join(f"<td{_LEFT}>{_text(cell)}</td>" for cell in row) + "</tr>" for row in rows
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _text(text: str) -> str:
    return html.escape(printable(text))


def _lines(text: str) -> str:
    return "\n".join(_text(line) for line in text.splitlines())
