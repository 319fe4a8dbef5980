"""NumPy's .npz, without pickle: image (n h w c), label, key, class_names, and about: a JSON object in UTF-8 a sample."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from zipfile import ZIP_STORED

import numpy as np

from synthgen import storage
from synthgen.errors import DataError
from synthgen.shards import codec
from synthgen.shards.encode import Encoded, Member, about_from, about_json
from synthgen.types import DatasetSpec, Shard

FOLDER = "npz"


@contextmanager
def shard(folder: Path, number: int, spec: DatasetSpec) -> Iterator[Callable[[Sequence[Encoded]], list[str]]]:
    """A file that takes samples until it is closed, when it is written: a shard's pixels are held until then."""
    name = f"{FOLDER}/train-{number:05d}.npz"
    images: list[np.ndarray] = []
    labels: list[int] = []
    keys: list[str] = []
    abouts: list[bytes] = []

    def put(samples: Sequence[Encoded]) -> list[str]:
        images.append(np.stack([sample.image for sample in samples]))
        labels.extend(sample.label for sample in samples)
        keys.extend(sample.key for sample in samples)
        abouts.extend(about_json(sample, spec) for sample in samples)
        return [name]

    yield put
    pixels = np.concatenate(images).transpose(0, 2, 3, 1)
    with storage.atomic(folder / name) as file:
        np.savez(
            file,
            image=np.ascontiguousarray(pixels),
            label=np.array(labels, np.int64),
            key=np.array(keys),
            class_names=np.array(spec.class_names),
            about=np.array(abouts),
        )


def index(folder: Path, shards: Sequence[Shard], spec: DatasetSpec) -> list[str]:
    """Nothing: the files are found by their names."""
    return []


def read(path: Path, channels: int | None = None) -> Iterator[Member]:
    """The samples of a file that `shard` made.

    Raises:
        DataError: not readable, or of another layout.
    """
    try:
        with np.load(path, allow_pickle=False) as arrays:
            packed = [member.filename for member in arrays.zip.infolist() if member.compress_type != ZIP_STORED]
            if packed:
                raise DataError(f"{path}: {packed[0]!r} is compressed, and an .npz of synthgen isn't; it could be of any size")
            images, labels, keys, abouts = (np.asarray(arrays[name]) for name in ("image", "label", "key", "about"))
        flat = images.ndim == 4 and all(array.ndim == 1 and len(array) == len(images) for array in (labels, keys, abouts))
        kinds = labels.dtype.kind, keys.dtype.kind, abouts.dtype.kind
        if (
            images.dtype != np.uint8
            or not flat
            or images.shape[-1] not in (1, 3)
            or kinds not in (("i", "U", "S"), ("u", "U", "S"))
        ):
            named = (("image", images), ("label", labels), ("key", keys), ("about", abouts))
            raise DataError(f"{path}: damaged: {', '.join(f'{name} {array.dtype} {array.shape}' for name, array in named)}")
        rows = list(zip(labels.tolist(), keys.tolist(), abouts.tolist(), strict=True))
        "".join(keys.tolist()).encode()  # half of a character is in none of ours
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except DataError:
        raise
    except Exception as error:  # zipfile, ast and numpy raise what they like of a damaged file
        why = " ".join(str(error).split())[:200] or type(error).__name__
        raise DataError(f"{path}: not readable as an .npz of synthgen ({why})") from None
    for image, (label, key, text) in zip(images, rows, strict=True):
        pixels = np.ascontiguousarray(image.transpose(2, 0, 1))
        yield Member(key, pixels, label, about_from(text, f"{path}: {key!r}"), codec.encode(pixels[None], "balanced")[0], "png")
