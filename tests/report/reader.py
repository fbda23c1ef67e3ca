"""What a browser would find in a page."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from html.parser import HTMLParser

from ebrm.report.words import NO_BREAK

VOID = {"meta", "link", "br", "img", "use", "path", "circle", "rect", "wbr"}


@dataclass
class Table:
    """A table with its caption; cells are text with single spaces, spanning rows are groups."""

    label: str
    folded: bool
    rows: list[list[str]] = field(default_factory=list)

    @property
    def head(self) -> list[str]:
        return self.rows[0]

    @property
    def body(self) -> list[list[str]]:
        return [row for row in self.rows[1:] if len(row) > 1]

    @property
    def groups(self) -> list[str]:
        return [row[0] for row in self.rows[1:] if len(row) == 1]


class Reader(HTMLParser):
    """What a browser would find: elements, visible text, text by id, tables by caption; tags must close in order."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.html = html
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[tuple[str, dict[str, str | None]]] = []
        self.visible: list[str] = []
        self.by_id: dict[str, str] = {}
        self.made: list[Table] = []
        self.glued = False  # whether a mere opportunity to break a line came before
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self.glued = tag == "wbr"
        if tag in VOID:
            return
        self.open.append((tag, dict(attrs)))
        if tag == "table":
            self.made.append(Table(str(dict(attrs)["aria-labelledby"]), any(t == "details" for t, _ in self.open)))
        elif tag == "tr":
            self.made[-1].rows.append([])
        elif tag in ("td", "th"):
            self.made[-1].rows[-1].append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop()[0] == tag

    def handle_data(self, data: str) -> None:
        tags = [tag for tag, _ in self.open]
        if "style" in tags:
            return
        self.visible.append(data)
        for _, attributes in self.open:
            if name := attributes.get("id"):
                self.by_id[name] = plain(self.by_id.get(name, "") + " " + data)
        if "td" in tags or "th" in tags:
            cells = self.made[-1].rows[-1]
            cells[-1] = plain(cells[-1] + ("" if self.glued else " ") + data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]

    @property
    def text(self) -> str:
        return plain(" ".join(self.visible))

    @property
    def headline(self) -> str:
        return plain(str(re.findall(r"<h1>(.*?)</h1>", self.html, re.DOTALL)[0]))

    @property
    def sections(self) -> list[str]:
        return [str(attributes["id"]) for attributes in self.all("section")]

    @property
    def tables(self) -> dict[str, Table]:
        return {self.by_id[table.label]: table for table in self.made}

    @property
    def tiles(self) -> list[tuple[str, str, str]]:
        part = r'<p class="{}">(.*?)</p>'
        found = re.findall("".join(part.format(name) for name in ("label", "value", "detail")), self.html)
        return [(label, value, plain(detail)) for label, value, detail in found]


def plain(text: str) -> str:
    return " ".join(text.replace(NO_BREAK, " ").split())
