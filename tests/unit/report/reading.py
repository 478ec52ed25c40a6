"""What a page holds, read back: its elements, its text, and the specifications that its script unpacks."""

import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any


def unpacked(node: Any, shared: list[Any]) -> Any:
    """As ``unpack`` in page.js."""
    if isinstance(node, list):
        return [unpacked(item, shared) for item in node]
    if not isinstance(node, dict):
        return node
    if "$" in node:
        return unpacked(shared[node["$"]], shared)
    if "$levels" in node:
        levels = unpacked(node["$levels"], shared)
        return [levels[at] for at in unpacked(node["$at"], shared)]
    if "$table" in node:
        columns = unpacked(node["$table"], shared)
        return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    return {key: unpacked(item, shared) for key, item in node.items()}


class Page(HTMLParser):
    """Elements, attributes, and the text outside scripts and styles."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.source = path.read_text(encoding="utf-8")
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.text = ""
        self._inside = ""
        self.feed(self.source)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attributes)))
        self._inside = tag if tag in ("script", "style") else ""
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside == "script":
            self.scripts[-1] += data
        elif not self._inside:
            self.text += data

    def tags(self, name: str) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.elements if tag == name]

    @property
    def plots(self) -> dict[str, Any]:
        packed = json.loads(self.scripts[0])
        return unpacked(packed["value"], packed["shared"])["plots"]
