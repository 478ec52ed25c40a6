"""Check a built site: each link inside it leads to a page and a place that exist, and no page loads anything from elsewhere.

python docs/links.py SITE
"""

import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit


class Page(HTMLParser):
    """The places of a page that links can name, its links, and what it loads."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.places: set[str] = {"", "top"}
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Keep what a tag names or refers to."""
        given = {name: value for name, value in attrs if value is not None}
        self.places |= {given[name] for name in ("id", "name") if name in given}
        if tag == "a" and "href" in given:
            self.links.append(given["href"])
        elif "src" in given or (tag == "link" and given.get("rel") != "canonical"):
            self.loaded.append(given.get("src", given.get("href", "")))


def broken(site: Path) -> list[str]:
    """One line for each link or file that is not there, or is to be loaded from another host."""
    pages = {path.resolve(): Page(path) for path in site.rglob("*.html") if path.parent.name != "_static"}
    if not pages:
        return [f"{site} has no pages"]
    found = []
    for path, page in pages.items():
        for address in (*page.links, *page.loaded):
            parts = urlsplit(address)
            if parts.scheme or parts.netloc:
                if address in page.loaded and parts.scheme != "data":
                    found.append(f"{path.relative_to(site.resolve())} loads {address}")
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            there = target.is_file() and (
                target not in pages or unquote(parts.fragment) in pages[target].places
            )
            if not there:
                found.append(f"{path.relative_to(site.resolve())} refers to {address}, which is not there")
    return found


if __name__ == "__main__":
    lines = broken(Path(sys.argv[1]))
    sys.exit("\n".join(lines) or None)
