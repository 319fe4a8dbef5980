"""A run in a process of its own, in whose surroundings and images there are secrets: `python -m tests.faults.planted_run ...`.

    ... RECIPE OUT TOKEN

TOKEN is there so that the command line of the process holds one. The run is made twice: with CSV logs, and once more, all
its stages skipped, with Weights & Biases in its offline mode.
"""

from __future__ import annotations

import getpass
import platform
import socket
import sys
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageCms, PngImagePlugin

HOST = "tell-tale-host"
TINY = [
    "size=tiny", "models=[vae]", "generators.vae.steps=60", "features.steps=8", "features.defect_steps=0", "features.folds=2",
    "classifier.steps=8", "gate.planted=3", "gate.splits=20", "gate.false_rejection=0.001", "generate.num=100",
    "split.train=40", "split.val=15", "split.reference=200", "split.test=0.2", "looks.times=0", "gain.seeds=2",
    "gain.tune_seeds=0", "gain.select_seeds=1", "gain.curve=false", "gain.arms=[real_aug,synthetic_gated]", "export.samples=all",
    "export.formats=[webdataset,parquet,folder,npz,mds]", "workers=1", "data.size_px=8",
]  # fmt: skip
"""On these images a VAE of 60 steps has samples that pass, so that every part of a run is there."""


def images(folder: Path, secret: str) -> None:
    """320 labelled 8x8 images of two classes; wherever a file can hold a text beside its pixels, the secret stands in some."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:8, :8] - 3.5
    for label in range(2):
        for number in range(160):
            across, down = rng.uniform(-12, 12, 2)
            level = rng.uniform(60, 190) + across * x + 0.3 * down * y + (40 if label else -40) * (x > 0)
            pixels = np.clip(level + rng.normal(0, rng.uniform(0, 12), (8, 8)), 0, 255).astype(np.uint8)
            place = folder / f"class {label}"
            place.mkdir(parents=True, exist_ok=True)
            _save(Image.fromarray(pixels), place / f"{number:03d}", number % 8, secret)


def _save(image: Image.Image, stem: Path, kind: int, secret: str) -> None:
    exif = Image.Exif()
    exif[0x013B], exif[0x010E], exif[0x9C9D] = secret, f"by {secret}", secret.encode("utf-16-le")
    exif.get_ifd(0x8825)[0x001D] = secret
    exif.get_ifd(0x8769)[0x9286] = b"ASCII\0\0\0" + secret.encode()
    xmp = f"<x:xmpmeta xmlns:x='adobe:ns:meta/'><who>{secret}</who></x:xmpmeta>".encode()
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    profile += secret.encode()
    if kind == 0:
        text = PngImagePlugin.PngInfo()
        text.add_text("Author", secret)
        text.add_text("Comment", secret * 40, zip=True)
        text.add_itxt("XML:com.adobe.xmp", xmp.decode(), zip=True)
        image.save(f"{stem}.png", pnginfo=text, exif=exif, icc_profile=bytes(profile))
    elif kind == 1:
        image.save(f"{stem}.jpg", quality=95, exif=exif, comment=secret, xmp=xmp, icc_profile=bytes(profile))
    elif kind == 2:
        image.save(f"{stem}.webp", lossless=True, exif=exif, xmp=xmp, icc_profile=bytes(profile))
    elif kind == 3:
        image.save(f"{stem}.tif", tiffinfo={0x013B: secret, 0x010D: secret, 0x02BC: xmp})
    elif kind == 4:
        image.save(f"{stem}.gif", comment=secret)
    else:
        image.save(f"{stem}.png")


def main(recipe: str, out: str) -> None:
    from synthgen import cli

    socket.gethostname = platform.node = lambda: HOST
    warnings.simplefilter("ignore")
    for tracking in ("csv", "offline"):
        sys.argv = ["synthgen", "run", recipe, f"tracking={tracking}", *TINY, "--out", out]
        code = cli._main()
        assert code == 0, code
    print(getpass.getuser())


if __name__ == "__main__":
    main(*sys.argv[1:3])
