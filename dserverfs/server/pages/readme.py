"""A README as a page shows it: the structure of its YAML, with each text as it was written.

Only the composer of YAML runs, so nothing is constructed of what a README says, and dates and
numbers stay as they are written. Pure.
"""

from __future__ import annotations

from typing import NamedTuple

import yaml

# Of the worst, brackets alone, PyYAML reads so much in 1 s; a usual page takes it 2 ms.
_MAX_YAML_LETTERS = 16 * 1024
_MAX_NODES = 1000  # an alias counts as often as it is shown
_MAX_DEPTH = 12
_MAX_LETTERS = 64 * 1024  # that are shown


class Node(NamedTuple):
    """A text, a list of parts, or a mapping: then each part has a key."""

    text: str = ""
    parts: tuple[Node, ...] = ()
    key: str = ""
    is_mapping: bool = False


class Readme(NamedTuple):
    text: str  # as it is written
    is_cut: bool
    tree: Node | None  # None: it is no mapping in YAML, or too large to be read as one


class _TooMuch(Exception):
    """It is not shown as a tree."""


def read(text: str) -> Readme:
    shown = text[:_MAX_LETTERS]
    return Readme(shown, len(shown) < len(text), _tree_of(text))


def _tree_of(text: str) -> Node | None:
    if len(text) > _MAX_YAML_LETTERS:
        return None
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        return _Walk().of(node, 0) if isinstance(node, yaml.MappingNode) else None
    except (yaml.YAMLError, _TooMuch, RecursionError, ValueError, OverflowError):
        return None


class _Walk:
    """One walk through the nodes of YAML, which an alias can make a circle."""

    def __init__(self) -> None:
        self._left = _MAX_NODES

    def of(self, node: yaml.Node, depth: int, key: str = "") -> Node:
        self._left -= 1
        if self._left < 0 or depth > _MAX_DEPTH:
            raise _TooMuch
        if isinstance(node, yaml.ScalarNode):
            return Node(_text(node.value), key=key)
        if isinstance(node, yaml.SequenceNode):
            return Node(parts=tuple(self.of(each, depth + 1) for each in node.value), key=key)
        return Node(
            parts=tuple(self._entry(name, value, depth + 1) for name, value in node.value),
            key=key,
            is_mapping=True,
        )

    def _entry(self, name: yaml.Node, value: yaml.Node, depth: int) -> Node:
        if not isinstance(name, yaml.ScalarNode):
            raise _TooMuch
        return self.of(value, depth, _text(name.value))


def _text(value: object) -> str:
    """Return a text; raises _TooMuch for letters that no page can have."""
    text = str(value)
    try:
        text.encode()
    except UnicodeEncodeError:
        raise _TooMuch from None
    return text
