"""Secrets in the command line, the environment, the settings and the images: in no byte of what a run leaves to be shared."""

from __future__ import annotations

import base64
import io
import os
import struct
import subprocess
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import pyarrow.parquet as pq
import pytest
import yaml

from synthgen import elsewhere, storage, tracking
from synthgen.shards import manifest
from tests.faults import planted_run

ROOT = Path(__file__).resolve().parents[2]
SECRETS = {
    "AWS_ACCESS_KEY_ID": "AKIAIOSFODNN7CANARY1",
    "AWS_SECRET_ACCESS_KEY": "wJalrXUtnFEMI/K7MDENG+bPxRfiCYCANARYKEY1",
    "WANDB_API_KEY": "0123456789abcdef0123456789abcdef0123ca4a",
    "HF_TOKEN": "hf_CanaryCanaryCanaryCanaryCanaryCa",
    "DATABASE_PASSWORD": "correct-canary-battery-staple",
}
"""In the environment."""
USER, ARGV, COMMENT, EXIF = "user-canary-73", "argv-canary-5f1c", "comment-canary-88d2", "exif-canary-41aa"
LOGIN_KEY, LOGIN_SECRET, GROUP_TOKEN = "KEYCANARY0123456789A", "url/canary/secret+9", "ghp_canarycanarycanary0123"
TOKENS = {**SECRETS, "user": USER, "argv": ARGV, "a comment in the recipe": COMMENT, "EXIF and other texts in images": EXIF,
          "key of export.to": LOGIN_KEY, "secret of export.to": LOGIN_SECRET, "token of group": GROUP_TOKEN,
          "host": planted_run.HOST}  # fmt: skip
OWN = ("config.yaml", storage.LOCK)
"""What a run writes for its own use alone: the settings as they were given."""


@dataclass(frozen=True)
class Planted:
    """A finished run, where its images lie, and what it said on its terminal."""

    out: Path
    home: Path
    data: Path
    said: str


@pytest.fixture(scope="module")
def planted(tmp_path_factory) -> Planted:
    folder = tmp_path_factory.mktemp("secrets")
    home = folder / "home" / USER
    data, out = home / "patients-of-doctor-canary" / "images", folder / "place-canary" / "run"
    planted_run.images(data, EXIF)
    recipe = folder / "mine.yaml"
    group, place = f"https://me:{GROUP_TOKEN}@example.org/x", f"memory://{LOGIN_KEY}:{LOGIN_SECRET}@bucket/set"
    settings = {"defaults": ["schema", {"size": "tiny"}, "_self_"], "group": group, "export": {"to": place}}
    settings["data"] = {"source": "folder", "path": str(data)}
    recipe.write_text(f"# password: {COMMENT}\n{yaml.safe_dump(settings, sort_keys=False)}")
    known = {name: os.environ[name] for name in ("PATH", "LANG", "SYSTEMROOT") if name in os.environ}
    environment = {**known, **SECRETS, "HOME": str(home), "USER": USER, "LOGNAME": USER, "PYTHONPATH": str(ROOT)}
    environment |= {"WANDB_MODE": "offline", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tests.faults.planted_run", str(recipe), str(out), ARGV]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.splitlines()[-1] == USER
    return Planted(out, home, data, done.stderr)


# Searching


def forms(secret: str) -> list[bytes]:
    """How a text may stand in a file: plain, as UTF-16, in a URL, as JSON, in hexadecimal and in base64 at any offset."""
    plain = secret.encode()
    found = [
        plain,
        secret.encode("utf-16-le"),
        quote(secret, safe="").encode(),
        plain.replace(b"/", b"\\/"),
        plain.hex().encode(),
    ]
    for offset in range(3):  # but for the ends, which depend on what stands beside it
        padded = base64.b64encode(b"\0" * offset + plain)
        found.append(padded[4 if offset else 0 : -4])
    return [form for form in dict.fromkeys(found) if len(form) > 6]


def contents(path: Path) -> Iterator[bytes]:
    """All bytes of a file, and those that are packed in it."""
    data = path.read_bytes()
    yield data
    if path.suffix == ".parquet":
        table = pq.read_table(path)
        yield repr(table.schema).encode() + b"".join(value for pair in (table.schema.metadata or {}).items() for value in pair)
        for row in table.to_pylist():
            yield repr(row).encode()
            if isinstance(row.get("image"), dict):
                yield from unpacked(row["image"]["bytes"])
    elif path.suffix == ".npz":
        with zipfile.ZipFile(path) as archive:
            yield from map(archive.read, archive.namelist())
    elif path.suffix == ".tar":
        with tarfile.open(path) as archive:
            for member in archive:
                yield repr(member.get_info()).encode() + repr(member.pax_headers).encode()
                yield from unpacked(archive.extractfile(member).read())
    elif path.suffix == ".wandb":  # of LevelDB's log: blocks of 32 KiB, records in pieces of 7 bytes and more
        yield b"".join(data[at + 7 : at + 32768] for at in range(0, len(data), 32768))
    else:
        yield from unpacked(data)


def unpacked(data: bytes) -> Iterator[bytes]:
    """The chunks of a PNG, inflated where they are deflated; of WebP its bytes."""
    yield data
    at = 8 if data.startswith(b"\x89PNG") else len(data)
    while at + 12 <= len(data):
        (length,) = struct.unpack(">I", data[at : at + 4])
        kind, body = data[at + 4 : at + 8], data[at + 8 : at + 8 + length]
        assert kind in (b"IHDR", b"IDAT", b"IEND", b"PLTE", b"tRNS"), f"a PNG of a run has a chunk {kind!r}"
        yield zlib.decompress(body) if kind == b"IDAT" else body
        at += 12 + length


def leaks(paths: list[Path], secrets: dict[str, str], out: Path) -> tuple[int, list[str]]:
    """How many pairs of file and secret were looked at, and those that were found."""
    searched = {name: forms(secret) for name, secret in secrets.items()}
    found = []
    for path in paths:
        texts = [str(path.relative_to(out)).encode(), *contents(path)]
        whole = b"\n".join(texts)
        found += [
            f"{name} in {path.relative_to(out)}" for name, those in searched.items() if any(form in whole for form in those)
        ]
    return len(paths) * len(secrets), found


def files(out: Path, *folders: str) -> list[Path]:
    places = [out / folder for folder in folders] or [out]
    return sorted(path for place in places for path in (place.rglob("*") if place.is_dir() else [place]) if path.is_file())


# The tests


def test_the_search_finds_each_form(tmp_path):
    """Else it would prove nothing."""
    secret = TOKENS["AWS_SECRET_ACCESS_KEY"]
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a", secret * 9)
    written = {
        "plain.txt": secret.encode(), "url.txt": quote(secret, safe="").encode(), "wide.txt": secret.encode("utf-16-le"),
        "a.npz": packed.getvalue(), "json.txt": secret.replace("/", "\\/").encode(), "hex.txt": secret.encode().hex().encode(),
        **{f"base64-{n}.txt": base64.b64encode(b"x" * n + secret.encode() + b"yy") for n in range(4)},
        "run.wandb": b"\0" * 32760 + secret.encode()[:8] + b"7 bytes" + secret.encode()[8:] + b"\0" * 99,
    }  # fmt: skip
    for name, data in written.items():
        (tmp_path / name).write_bytes(data)
    _, found = leaks(files(tmp_path), {"it": secret}, tmp_path)
    assert sorted(found) == sorted(f"it in {name}" for name in written)


def test_every_part_of_a_run_is_there(planted):
    """Else nothing would be searched."""
    whole = manifest.verify(planted.out / "shards")
    assert {shard.format for shard in whole.shards} == {"webdataset", "parquet", "folder", "npz", "mds"}
    for pattern in ("report/index.html", "report/report.json", "wandb/offline-run-*/*.wandb", "logs/**/*.csv", "gain/gain.json"):
        assert list(planted.out.glob(pattern)), pattern
    assert EXIF.encode() in b"".join(path.read_bytes() for path in planted.data.rglob("*.jpg"))


def test_no_secret_gets_into_any_file(planted, tally):
    """The settings themselves excepted, which a run keeps as they were given: it is for them that `export.to` goes on working."""
    cases, found = leaks([path for path in files(planted.out) if path.name not in OWN], TOKENS, planted.out)
    own, beyond = leaks([planted.out / name for name in OWN], {n: s for n, s in TOKENS.items() if "export" not in n}, planted.out)
    beyond = [line for line in beyond if not line.startswith(("user", "token of group"))]
    found += beyond + [f"{name} on the screen" for name, secret in TOKENS.items() if secret in planted.said and name != "user"]
    tally("secrets", cases=cases + own + len(TOKENS), bad=len(found))
    assert not found


def test_no_place_on_this_machine_gets_into_what_is_shared(planted, tally):
    """Shards, report, manifests and what W&B is sent: nobody learns from them where the images lie, or whose they are."""
    places = {"the images": str(planted.data), "the home folder": str(planted.home), "of a patient": planted.data.parent.name}
    shared = files(planted.out, "shards", "report", "verdict.json", "run.json", "logs", "wandb", "audit", "gain", "gate", "train")
    shared += files(planted.out, "candidates", "select", "features", "split")
    shared = [path for path in dict.fromkeys(shared) if "wandb/" not in str(path) or "/logs/" not in str(path)]
    cases, found = leaks(shared, places, planted.out)
    # an offline file says where the artifacts lie, since `wandb sync` needs that; it isn't sent itself
    mine = [path for path in shared if path.suffix != ".wandb"]
    more, lying = leaks(mine, {"the run's folder": str(planted.out), "above it": planted.out.parent.name}, planted.out)
    tally("secrets", cases=cases + more, bad=len(found) + len(lying))
    assert not found + lying


def test_a_login_is_taken_out_of_every_address(tally):
    cases = {
        "s3://KEY:SECRET@bucket/set": "s3://...@bucket/set",
        f"s3://{LOGIN_KEY}:{LOGIN_SECRET}@bucket/set": "s3://...@bucket/set",
        "https://token@host/x": "https://...@host/x",
        "can't write to ftp://me:a@b@host/x: refused": "can't write to ftp://...@host/x: refused",
        "https://host/x": "https://host/x",
        "me@example.org": "me@example.org",
    }
    wrong = [url for url, said in cases.items() if elsewhere.without_login(url) != said]
    tally("secrets", cases=len(cases), bad=len(wrong))
    assert not wrong


def test_texts_of_a_run_that_wandb_is_sent_name_no_place():
    sent = tracking.WandB(None, ["/home/me/images", "/home/me"])._public({"a": ["/home/me/images/x.png is broken", "s3://a:b@c"]})
    assert sent == {"a": ["…/images/x.png is broken", "s3://...@c"]}
