"""The page's own style rules: many small images in a few sheets, and what a style attribute would say.

The page's policy allows no style attributes, so that a name which gets out of its place can't even colour anything: each
declaration becomes a class, however many elements carry it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from markupsafe import Markup

from synthgen.report.sprites import LARGEST_PX, Sprite, sprite


class Styles:
    """Collects what the page needs while it is built; `css` comes last.

    Args:
        largest_px: larger images are shrunk to this.
    """

    def __init__(self, largest_px: int = LARGEST_PX) -> None:
        self._largest_px = largest_px
        self._sprites: list[Sprite] = []
        self._rules: dict[str, str] = {}

    def sheet(self, images: Sequence[Any]) -> tuple[str, Sprite]:
        """Class name and sprite of some images of one shape (at least one)."""
        self._sprites.append(sprite(images, self._largest_px))
        return f"sheet-{len(self._sprites) - 1}", self._sprites[-1]

    @property
    def num_bytes(self) -> int:
        """Of all sheets, as they stand in the page."""
        return sum(len(each.url) for each in self._sprites)

    def place(self, of: Sprite, number: int) -> str:
        """The class that shows image `number` of a sprite."""
        return self._class(f"background-position:{of.position(number)}")

    def span(self, start: float, width: float) -> str:
        """The class of a bar that starts at `start` and is `width` long, both in percent of what it stands in."""
        return self._class(f"left:{start:.2f}%;width:{max(width, 0.0):.2f}%")

    def css(self) -> Markup:
        """The rules; there is nothing but numbers and base64 in them."""
        sheets = [
            f".sheet-{i} .tile{{width:{s.width:g}px;height:{s.height:g}px;background-image:url({s.url});"
            f"background-size:{s.sheet_width:g}px auto;image-rendering:{'pixelated' if s.pixelated else 'auto'}}}"
            for i, s in enumerate(self._sprites)
        ]
        return Markup("\n".join([*sheets, *(f".{name}{{{rule}}}" for rule, name in self._rules.items())]))

    def _class(self, declaration: str) -> str:
        return self._rules.setdefault(declaration, f"c{len(self._rules)}")
