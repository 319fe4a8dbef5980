"""Files that nobody wrote on purpose: bytes flipped, cut and spliced, JSON whose values have another type, sums made right again.

Every function takes a `random.Random`, which may be hypothesis's own, so that a failure shrinks.
"""

from __future__ import annotations

import copy
import io
import json
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

NASTY: list[Any] = [
    None, True, False, 0, -1, 1, 2**31, 2**63, -(2**63) - 1, 10**30, 0.5, -0.0, 1e308, float("nan"), float("inf"), "", "x", "nan",
    "\x00", "../../x", "/etc/passwd", "a" * 3000, "\ud800", "\u202e", "<script>", "1e400", [], {}, [[]], [None], {"a": None},
    {"": []}, [1, "2", None], "9" * 5000,
]  # fmt: skip
"""Values that nobody expects."""


def mutated_json(rng: Random, text: bytes) -> bytes:
    """A JSON text with one to three of its values changed, taken out, doubled or put elsewhere."""
    tree = json.loads(text)
    for _ in range(rng.randint(1, 3)):
        tree = _changed(rng, tree)
    return json.dumps(tree, allow_nan=True).encode()


def _places(tree: Any, path: tuple = ()) -> list[tuple]:
    """Where the values of a tree stand; of long lists and tables the first few."""
    found = [path] if path else []
    children = list(tree.items()) if isinstance(tree, dict) else list(enumerate(tree)) if isinstance(tree, list) else []
    for key, child in children[:40]:
        found += _places(child, (*path, key))
    return found


def _changed(rng: Random, tree: Any) -> Any:
    places = _places(tree)
    if not places or rng.randint(0, 40) == 0:
        return rng.choice(NASTY)
    tree = copy.deepcopy(tree)
    *way, last = rng.choice(places)
    parent = tree
    for key in way:
        parent = parent[key]
    how = rng.randint(0, 9)
    if how < 6:
        parent[last] = copy.deepcopy(rng.choice(NASTY))
    elif how == 6:
        del parent[last]
    elif how == 7 and isinstance(parent, dict):
        parent[rng.choice(["new", "", "schema", str(last) + "x"])] = parent[last]
    elif how == 8 and isinstance(parent, list):
        parent.insert(0, copy.deepcopy(parent[last]))
    else:
        other: Any = tree
        for key in rng.choice(places):
            other = other[key]
        parent[last] = copy.deepcopy(other)
    return tree


def mutated(rng: Random, data: bytes, others: Sequence[bytes] = ()) -> bytes:
    """Bytes with one to four flips, cuts, doublings, numbers, or pieces of another file."""
    whole = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        at = rng.randint(0, max(0, len(whole) - 1))
        how = rng.randint(0, 7)
        if how <= 1 and whole:
            whole[at] ^= 1 << rng.randint(0, 7)
        elif how == 2 and whole:
            whole[at] = rng.choice([0, 1, 127, 128, 255])
        elif how == 3:
            del whole[at:]
        elif how == 4:
            del whole[at : at + rng.randint(1, 64)]
        elif how == 5:
            whole[at:at] = whole[at : at + rng.randint(1, 600)]
        elif how == 6:
            number = rng.choice([0, 1, 0xFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF])
            whole[at : at + 4] = struct.pack(rng.choice(["<I", ">I"]), number)
        else:
            other = rng.choice([data, *others])
            start = rng.randint(0, max(0, len(other) - 1))
            whole[at : at + 32] = other[start : start + rng.randint(1, 600)]
    return bytes(whole)


# With their check sums made right again, so that what lies behind them is reached


def mended_png(data: bytes) -> bytes:
    """Each chunk of a PNG with the CRC of what it holds now; the bytes as they are where that can't be told."""
    out, at = [data[:8]], 8
    while at + 12 <= len(data):
        (length,) = struct.unpack(">I", data[at : at + 4])
        if at + 12 + length > len(data):
            break
        body = data[at + 4 : at + 8 + length]
        out += [data[at : at + 4], body, struct.pack(">I", zlib.crc32(body))]
        at += 12 + length
    return b"".join([*out, data[at:]])


def mended_tar(data: bytes) -> bytes:
    """Each header of a tar archive with the sum of what it holds now."""
    whole, at = bytearray(data), 0
    while at + 512 <= len(whole) and any(whole[at : at + 512]):
        header = whole[at : at + 512]
        try:
            size = max(0, tarfile.nti(bytes(header[124:136])))
        except (tarfile.TarError, ValueError):
            size = 0
        header[148:156] = b" " * 8
        whole[at + 148 : at + 156] = b"%06o\0 " % (sum(header) & 0o777777)
        at += 512 + -(-size // 512) * 512
    return bytes(whole)


def mutated_zip(rng: Random, data: bytes, others: Sequence[bytes] = ()) -> bytes:
    """An archive one of whose members was changed, or that is packed otherwise."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    name = rng.choice(sorted(members))
    how = rng.randint(0, 5)
    if how == 0:
        del members[name]
    elif how == 1:
        members[name] = members[rng.choice(sorted(members))]
    else:
        at = rng.randint(0, min(127, len(members[name])))  # mostly its header
        members[name] = members[name][:at] + mutated(rng, members[name][at:], others)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", rng.choice([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])) as archive:
        for member, content in members.items():
            archive.writestr(zipfile.ZipInfo(member), content)
    return buffer.getvalue()


def mutated_safetensors(rng: Random, data: bytes, others: Sequence[bytes] = ()) -> bytes:
    """A checkpoint whose header, or what synthgen says in it, was changed."""
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    if rng.randint(0, 2):
        about = mutated_json(rng, header["__metadata__"]["synthgen"].encode())
        header["__metadata__"]["synthgen"] = about.decode()
        text = json.dumps(header).encode()
    else:
        text = mutated_json(rng, json.dumps(header).encode())
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + data[8 + length :]


def then(first: Callable[..., bytes], second: Callable[[bytes], bytes]) -> Callable[..., bytes]:
    """One after the other."""
    return lambda rng, data, others=(): second(first(rng, data, others))
