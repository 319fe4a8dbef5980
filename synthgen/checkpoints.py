"""Checkpoints that a training is taken up from: whole or not at all, finite, with their sha256, and without code in them."""

from __future__ import annotations

import hashlib
import io
import pickle
from pathlib import Path
from typing import Any

import torch
from lightning_fabric.plugins.io.checkpoint_io import CheckpointIO
from torch import Tensor

from synthgen import storage
from synthgen.errors import CheckpointError

DIGEST_BYTES = hashlib.sha256().digest_size


class NotFinite(ValueError):
    """A checkpoint that holds NaN or infinity; its text says where."""


def finite(part: Any) -> bool:
    """Whether every number of a nest of tensors is finite."""
    if isinstance(part, Tensor):
        return not part.is_floating_point() or bool(torch.isfinite(part).all())
    if isinstance(part, dict):
        return all(map(finite, part.values()))
    return all(map(finite, part)) if isinstance(part, list | tuple) else True


class AtomicCheckpointIO(CheckpointIO):
    """Lightning's checkpoints through `storage`: whole or not at all, and read back without running code.

    A sha256 follows the bytes, since torch doesn't look at the checksums of its own format.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Replaces what stands there, unless a weight or a number of an optimiser isn't finite.

        Raises:
            NotFinite: nothing was written.
        """
        for part in ("state_dict", "optimizer_states"):
            if not finite(checkpoint.get(part)):
                raise NotFinite(part)
        buffer = io.BytesIO()
        torch.save(checkpoint, buffer)
        data = buffer.getvalue()
        storage.write_bytes(Path(path), data + hashlib.sha256(data).digest())

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = True) -> dict[str, Any]:
        """Raises CheckpointError where the file isn't as it was written, or holds more than numbers and texts."""
        data = Path(path).read_bytes()
        data, digest = data[:-DIGEST_BYTES], data[-DIGEST_BYTES:]
        if hashlib.sha256(data).digest() != digest:
            raise CheckpointError(f"{path}: differs from the sha256 at its end; delete it: training goes on from the one before")
        try:
            loaded: dict[str, Any] = torch.load(io.BytesIO(data), map_location=map_location, weights_only=True)
        except (pickle.UnpicklingError, RuntimeError, ValueError) as error:
            first = str(error).partition("\n")[0]
            raise CheckpointError(f"{path}: not a checkpoint of a training ({first}); delete it") from None
        return loaded

    def remove_checkpoint(self, path: Any) -> None:
        Path(path).unlink(missing_ok=True)


def newest(folder: Path | None) -> dict[str, Any] | None:
    """The newest checkpoint that can be read; a kill during the last save leaves the one before."""
    if folder is None or not folder.is_dir():
        return None
    for path in sorted(folder.glob(f"{storage.RESUME}-*.ckpt"), key=lambda p: p.stat().st_mtime_ns, reverse=True):
        try:
            return AtomicCheckpointIO().load_checkpoint(path, map_location="cpu")
        except (CheckpointError, OSError):  # damaged by the disk: the one before it is as good
            continue
    return None
