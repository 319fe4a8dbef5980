"""One sample <-> bytes: lossless PNG without dates, and what the export says of it."""

from __future__ import annotations

import io
import json
import math
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, NamedTuple, TypeVar

import numpy as np
from PIL import Image, ImageOps

from synthgen.errors import DataError
from synthgen.shapes import UInt8
from synthgen.types import Batch, DatasetSpec, SampleInfo

MAX_PIXELS = 64_000_000
"""An image with more pixels isn't decoded."""

T = TypeVar("T")
Samples = Iterable[tuple[Batch, Sequence[SampleInfo]]]


class Encoded(NamedTuple):
    """One sample, ready to be written."""

    key: str
    label: int
    png: bytes
    info: SampleInfo


def encoded(samples: Samples, spec: DatasetSpec) -> Iterator[Encoded]:
    """The samples one by one, whatever batches they come in.

    Raises:
        DataError: another shape or class count than `spec` says, a key twice, or one with '.', '/', a control character
            or a leading '-' (WebDataset takes a key to end at the first '.').
    """
    seen: set[str] = set()
    for batch, infos in samples:
        if len(infos) != len(batch):
            raise DataError(f"a batch of {len(batch)} samples comes with {len(infos)} infos")
        if batch.images.shape[1:] != spec.image_shape:
            raise DataError(f"samples of shape {batch.images.shape[1:]}, the data set {spec.name!r} has {spec.image_shape}")
        for image, label, key, info in zip(batch.images, batch.labels.tolist(), batch.keys, infos, strict=True):
            if not 0 <= label < spec.num_classes:
                raise DataError(f"sample {key!r}: label {label}, the data set {spec.name!r} has {spec.num_classes} classes")
            if not key or key in seen or set(key) & set("./\\") or key[0] in "-_" or not key.isprintable() or len(key) > 200:
                why = "stands twice" if key in seen else "can't name a file of an export ('.', '/', a leading '-' or '_')"
                raise DataError(f"sample {key!r}: the key {why}; rename the image")
            seen.add(key)
            yield Encoded(key, label, encode_png(image), info)


def chunks(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Lists of `size` items, the last one shorter."""
    rest = iter(items)
    while chunk := list(islice(rest, size)):
        yield chunk


def encode_png(image: UInt8[np.ndarray, "c h w"]) -> bytes:
    """PNG of one image, 1 channel as grey and 3 as RGB; the same pixels give the same bytes."""
    pixels = image[0] if len(image) == 1 else image.transpose(1, 2, 0)
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(buffer, "PNG", compress_level=6)
    return buffer.getvalue()


def decode_image(data: bytes, where: str) -> UInt8[np.ndarray, "c h w"]:
    """Pixels of a grey or RGB PNG or JPEG, turned as its EXIF says.

    Raises:
        DataError: not readable, too large, or of another mode (16 bits, alpha, palette, CMYK).
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(data), formats=("PNG", "JPEG")) as image:
                if image.width * image.height > MAX_PIXELS:
                    raise DataError(f"{where}: {image.width} x {image.height} pixels, at most {MAX_PIXELS:,} are decoded")
                if image.mode not in ("L", "RGB"):
                    raise DataError(
                        f"{where}: an image of mode {image.mode!r}, expected grey ('L') or RGB; "
                        "unpack the archive and give it as an image folder, where other modes are converted"
                    )
                pixels = np.asarray(ImageOps.exif_transpose(image))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise DataError(f"{where}: not readable as PNG or JPEG ({error})") from None
    return pixels[None].copy() if pixels.ndim == 2 else np.ascontiguousarray(pixels.transpose(2, 0, 1))


def scores_json(scores: Mapping[str, float]) -> dict[str, float | None]:
    """Scores in a fixed order and as JSON types: one that isn't finite is null."""
    return {name: float(value) if math.isfinite(value) else None for name, value in sorted(scores.items())}


def info_from(data: Mapping[str, Any], where: str) -> SampleInfo:
    """What an export says of one sample; raises DataError where it says something else."""
    try:
        scores = data["scores"]
        values = json.loads(scores) if isinstance(scores, str) else scores
        return SampleInfo(
            generator=str(data["generator"]),
            checkpoint=str(data["checkpoint"]),
            seed=int(data["seed"]),
            index=int(data["index"]),
            scores={str(name): math.nan if value is None else float(value) for name, value in values.items()},
        )
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise DataError(f"{where}: not what an export of synthgen says of a sample ({type(error).__name__}: {error})") from None
