"""Many small images in one PNG: each is shown through a window on it, enlarged without blur."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from synthgen.shapes import UInt8

COLUMNS = 20
LARGEST_PX = 96
"""A larger image is shrunk, if nothing else is said: the page has to stay small."""
SHOWN_PX = 40
"""What an image measures on the page, at least; a larger one than `SHOWN_MOST_PX` is shrunk to that."""
SHOWN_MOST_PX = 64
MARGIN = 1
"""Each image's border is repeated outwards, so that no neighbour shines through on screens of odd resolution."""


@dataclass(frozen=True)
class Sprite:
    """One PNG with many images.

    Attributes:
        url: the PNG as a data URI.
        width, height: of one image on the page, in CSS pixels.
        sheet_width: of the whole PNG on the page, in CSS pixels.
        pixelated: whether images are enlarged, with every pixel a sharp square.
    """

    url: str
    width: float
    height: float
    sheet_width: float
    pixelated: bool

    def position(self, number: int) -> str:
        """CSS `background-position` that shows image `number`."""
        pitch_x, pitch_y, scale = self._pitch()
        row, column = divmod(number, COLUMNS)
        return f"{-(column * pitch_x + MARGIN * scale):g}px {-(row * pitch_y + MARGIN * scale):g}px"

    def _pitch(self) -> tuple[float, float, float]:
        pitch_x = self.sheet_width / COLUMNS
        scale = (pitch_x - self.width) / (2 * MARGIN)
        return pitch_x, self.height + 2 * MARGIN * scale, scale


def sprite(images: Sequence[UInt8[np.ndarray, "c h w"]], largest_px: int = LARGEST_PX) -> Sprite:
    """One sprite of images of the same shape (at least one)."""
    tiles = [np.asarray(_shrunk(image, largest_px)) for image in images]
    height, width = tiles[0].shape[:2]
    rows = -(-len(tiles) // COLUMNS)
    pitch_y, pitch_x = height + 2 * MARGIN, width + 2 * MARGIN
    sheet = np.zeros((rows * pitch_y, COLUMNS * pitch_x, *tiles[0].shape[2:]), np.uint8)
    for number, tile in enumerate(tiles):
        row, column = divmod(number, COLUMNS)
        border = ((MARGIN, MARGIN), (MARGIN, MARGIN), (0, 0))[: tile.ndim]
        sheet[row * pitch_y : (row + 1) * pitch_y, column * pitch_x : (column + 1) * pitch_x] = np.pad(tile, border, "edge")
    scale = _scale(max(height, width))
    return Sprite(data_uri(sheet), width * scale, height * scale, COLUMNS * pitch_x * scale, scale > 1)


def data_uri(pixels: UInt8[np.ndarray, "h w ..."]) -> str:
    """A PNG as a data URI."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def _shrunk(image: UInt8[np.ndarray, "c h w"], largest_px: int) -> Image.Image:
    picture = Image.fromarray(np.ascontiguousarray(image[0] if len(image) == 1 else image.transpose(1, 2, 0)))
    picture.thumbnail((largest_px, largest_px), Image.Resampling.LANCZOS)
    return picture


def _scale(size_px: int) -> float:
    """A whole number of screen pixels a pixel, where the image is enlarged."""
    return max(1, math.ceil(SHOWN_PX / size_px)) if size_px <= SHOWN_MOST_PX else SHOWN_MOST_PX / size_px
