"""Real images: every source, every conversion, every refusal."""

from __future__ import annotations

import json
import os
from io import BytesIO
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from pydantic import ValidationError

from synthgen.config.schema import DataConfig
from synthgen.data.sources import digest, load
from synthgen.errors import ConfigError, DataError
from synthgen.types import UNLABELLED


def picture(seed: int = 0, size: tuple[int, int] = (16, 16), mode: str = "RGB") -> Image.Image:
    """A random picture of a mode; `size` is (width, height)."""
    bands = len(Image.new(mode, (1, 1)).getbands())
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], bands), dtype=np.uint8)
    return Image.merge(mode, [Image.fromarray(pixels[..., i]) for i in range(bands)])


def png(image: Image.Image) -> bytes:
    file = BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def make_folder(root: Path, classes: tuple[str, ...] = ("cat", "dog"), num: int = 3, size: tuple[int, int] = (16, 16)) -> Path:
    for k, name in enumerate(classes):
        (root / name).mkdir(parents=True)
        for i in range(num):
            picture(100 * k + i, size).save(root / name / f"{i}.png")
    return root


def folder(root: Path, **settings: object) -> DataConfig:
    return DataConfig(source="folder", path=str(root), **settings)  # type: ignore[arg-type]


def one(root: Path, name: str = "x.png", **settings: object) -> tuple[np.ndarray, dict[str, int]]:
    """The image cat/`name` of a folder (rows: cat first, then dog), and what was converted."""
    found = load(folder(root, **settings))
    return found.batch.images[found.origins.index(f"cat/{name}")], found.converted


@pytest.fixture
def pets(tmp_path: Path) -> Path:
    return make_folder(tmp_path / "pets")


# Sources


def test_digits_are_scaled_to_the_whole_range_and_keep_their_names():
    digits = load(DataConfig())
    assert digits.batch.images.shape == (1797, 1, 8, 8)
    assert sorted(np.unique(digits.batch.images)) == [round(v * 255 / 16) for v in range(17)]
    assert digits.spec.class_names == tuple("0123456789")
    assert digits.batch.keys[123] == "real-000123"
    assert (digits.groups, digits.given, digits.quarantined, digits.sizes) == (None, None, {}, {"8x8": 1797})
    assert load(DataConfig()).spec.fingerprint == digits.spec.fingerprint


def test_folder_gives_pixels_in_a_stable_order(pets: Path):
    found = load(folder(pets))
    assert found.origins == ("cat/0.png", "cat/1.png", "cat/2.png", "dog/0.png", "dog/1.png", "dog/2.png")
    assert found.batch.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert found.spec.class_names == ("cat", "dog")
    assert found.spec.name == "pets"
    np.testing.assert_array_equal(found.batch.images[4], np.asarray(picture(101)).transpose(2, 0, 1))
    assert (found.converted, found.sizes) == ({}, {"16x16": 6})


def test_folder_with_a_given_split(tmp_path: Path):
    make_folder(tmp_path / "train", num=2)
    make_folder(tmp_path / "test", num=1)
    found = load(folder(tmp_path))
    assert found.given == ("train",) * 4 + ("test",) * 2
    assert found.origins[-1] == "test/dog/0.png"
    make_folder(tmp_path / "val", num=1)
    with pytest.raises(DataError, match=r"'val'; move its images into train/"):
        load(folder(tmp_path))


def test_a_split_without_its_other_half_is_no_set_of_classes(tmp_path: Path):
    make_folder(tmp_path / "train")
    make_folder(tmp_path / "val")
    with pytest.raises(DataError, match="look like splits"):
        load(folder(tmp_path))


def test_groups_from_paths(pets: Path):
    found = load(folder(pets, group_pattern=r"/(\d)\.png"))
    assert found.groups == ("0", "1", "2", "0", "1", "2")
    assert found.spec.grouped
    with pytest.raises(DataError, match=r"dog/0.png: data.group_pattern"):
        load(folder(pets, group_pattern=r"cat/(\d)"))
    with pytest.raises(ConfigError, match="not a regular expression"):
        load(folder(pets, group_pattern="("))
    with pytest.raises(ConfigError, match=r"no \(group\)"):
        load(folder(pets, group_pattern="cat"))


def write_parquet(
    path: Path, labels: list, names: list[str] | None, extra: dict | None = None, images: list | None = None
) -> None:
    images = images or [{"bytes": png(picture(i)), "path": f"{i}.png"} for i in range(len(labels))]
    table = pa.table({"image": images, "label": labels, **(extra or {})})
    if names is not None:
        features = {"image": {"_type": "Image"}, "label": {"names": names, "_type": "ClassLabel"}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(table, path)


def parquet(path: Path, **settings: object) -> DataConfig:
    return DataConfig(source="parquet", path=str(path), **settings)  # type: ignore[arg-type]


def test_parquet_of_hugging_face(tmp_path: Path):
    write_parquet(tmp_path / "train-00000.parquet", [1, 0, 1], ["cat", "dog"], {"patient": ["a", "b", "a"]})
    write_parquet(tmp_path / "test-00000.parquet", [0, 1], ["cat", "dog"], {"patient": ["c", "c"]})
    write_parquet(tmp_path / "other.parquet", [0], ["cat", "dog"], {"patient": ["c"]})
    found = load(parquet(tmp_path, group_column="patient"))
    assert found.spec.class_names == ("cat", "dog")
    assert found.batch.labels.tolist() == [1, 0, 1, 0, 1]
    assert found.given == ("train", "train", "train", "test", "test")
    assert found.groups == ("a", "b", "a", "c", "c")
    assert found.origins[3] == "test-00000.parquet#0"
    assert found.quarantined == {"other.parquet": "neither train*.parquet nor test*.parquet"}
    np.testing.assert_array_equal(found.batch.images[1], np.asarray(picture(1)).transpose(2, 0, 1))
    one_file = load(parquet(tmp_path / "train-00000.parquet"))
    assert (one_file.given, one_file.spec.name) == (None, "train-00000")


def test_parquet_labels_may_be_texts_or_numbers_without_names(tmp_path: Path):
    write_parquet(tmp_path / "a.parquet", ["dog", "cat", "dog"], None)
    assert load(parquet(tmp_path / "a.parquet")).spec.class_names == ("cat", "dog")
    write_parquet(tmp_path / "b.parquet", [7, 3, 10], None)
    found = load(parquet(tmp_path / "b.parquet"))
    assert found.spec.class_names == ("3", "7", "10")
    assert found.batch.labels.tolist() == [1, 0, 2]
    write_parquet(tmp_path / "c.parquet", ["dog", "cat"], None, images=[png(picture(0)), png(picture(1))])
    assert len(load(parquet(tmp_path / "c.parquet")).batch) == 2


def test_parquet_refusals(tmp_path: Path):
    file = tmp_path / "a.parquet"
    write_parquet(file, [0, 1], ["cat", "dog"])
    with pytest.raises(DataError, match=r"no column 'klass'.*data.label_column=NAME"):
        load(parquet(file, label_column="klass"))
    with pytest.raises(DataError, match=r"column 'label' is int64.*data.image_column"):
        load(parquet(file, image_column="label"))
    with pytest.raises(DataError, match=r"no column 'who'.*data.group_column"):
        load(parquet(file, group_column="who"))
    write_parquet(file, [0, 2], ["cat", "dog"])
    with pytest.raises(DataError, match="row 1 is 2, and the 2 classes"):
        load(parquet(file))
    write_parquet(file, [0, None], ["cat", "dog"])
    with pytest.raises(DataError, match="row 1 is None"):
        load(parquet(file))
    write_parquet(file, [0, 0], ["cat", "dog"])
    with pytest.raises(DataError, match="class 'dog' has no images"):
        load(parquet(file))
    file.write_bytes(b"PAR1 not really")
    with pytest.raises(DataError, match=r"a.parquet: not readable as Parquet"):
        load(parquet(file))
    file.unlink()
    with pytest.raises(DataError, match=r"no .parquet files"):
        load(parquet(tmp_path))


def test_cifar10_loads_in_well_under_a_minute():
    places = [os.environ.get("SYNTHGEN_DATA", ""), "../shared/data"]
    if not any(Path(place, "cifar10").is_dir() for place in places):
        pytest.skip("no cifar10 in $SYNTHGEN_DATA or ../shared/data")
    found = load(parquet(Path("cifar10")))
    assert found.batch.images.shape == (60_000, 3, 32, 32)
    assert found.given is not None
    assert found.given.count("test") == 10_000
    assert np.bincount(found.batch.labels).tolist() == [6000] * 10
    assert found.spec.class_names[3] == "cat"


def npz(path: Path, **arrays: object) -> DataConfig:
    np.savez(path, **arrays)  # type: ignore[arg-type]
    return DataConfig(source="npz", path=str(path))


@pytest.mark.parametrize("layout", ["nhw", "nhwc", "nchw"])
def test_npz_layouts(tmp_path: Path, layout: str):
    pixels = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3), dtype=np.uint8)
    images = {"nhw": pixels[..., 0], "nhwc": pixels, "nchw": pixels.transpose(0, 3, 1, 2)}[layout]
    found = load(npz(tmp_path / "a.npz", images=images, labels=[0, 1, 0, 1], class_names=["cat", "dog"]))
    expected = pixels.transpose(0, 3, 1, 2)
    np.testing.assert_array_equal(found.batch.images, expected[:, :1] if layout == "nhw" else expected)
    assert found.spec.class_names == ("cat", "dog")


def test_npz_scales_16_bit_and_float(tmp_path: Path):
    ramp = np.arange(256, dtype=np.uint16).reshape(1, 16, 16).repeat(2, axis=0)
    for images in (ramp * 257, ramp / 255):
        found = load(npz(tmp_path / "a.npz", images=images, labels=["cat", "dog"]))
        np.testing.assert_array_equal(found.batch.images[:, 0], ramp)
        assert sum(found.converted.values()) == 2


def test_npz_refusals(tmp_path: Path):
    images, file = np.zeros((2, 8, 8), np.uint8), tmp_path / "a.npz"
    with pytest.raises(DataError, match="no array 'label', found \\['images'\\]"):
        load(npz(file, images=images))
    with pytest.raises(DataError, match=r"shape \(3,\), and there are 2 images"):
        load(npz(file, images=images, labels=[0, 1, 1]))
    with pytest.raises(DataError, match="floats from 0 to 2"):
        load(npz(file, images=images + np.float32(2) * np.eye(8, dtype=np.float32), labels=[0, 1]))
    with pytest.raises(DataError, match="holds int64, expected uint8"):
        load(npz(file, images=images.astype(np.int64), labels=[0, 1]))
    with pytest.raises(DataError, match=r"shape \(2, 8\), expected"):
        load(npz(file, images=images[:, 0], labels=[0, 1]))
    with pytest.raises(DataError, match="array 'labels': holds Python objects, which are never unpickled"):
        load(npz(file, images=images, labels=np.array([0, {}], dtype=object)))
    file.write_text("not a zip")
    with pytest.raises(DataError, match=r"a.npz: not readable as .npz"):
        load(DataConfig(source="npz", path=str(file)))


# Some classes, and images without a label


def test_only_the_classes_asked_for_in_that_order(pets: Path):
    everything, some = load(DataConfig()), load(DataConfig(classes=(7, "3")))  # type: ignore[arg-type]
    assert some.spec.class_names == ("7", "3")
    rows = np.flatnonzero(np.isin(everything.batch.labels, [3, 7]))
    np.testing.assert_array_equal(some.batch.images, everything.batch.images[rows])
    np.testing.assert_array_equal(some.batch.labels, np.where(everything.batch.labels[rows] == 7, 0, 1))
    assert some.origins == tuple(everything.origins[i] for i in rows)
    assert some.batch.keys[5] == "real-000005"
    turned = load(DataConfig(classes=("3", "7")))
    assert len({found.spec.fingerprint for found in (everything, some, turned)}) == 3
    with pytest.raises(ConfigError, match=r"data.classes: digits has no class 'seven'; its classes are 0, 1, 2"):
        load(DataConfig(classes=("3", "seven")))
    with pytest.raises(ConfigError, match=r"has no class 'catt'; did you mean 'cat'\?; its classes are cat, dog"):
        load(folder(pets, classes=("catt", "dog")))
    with pytest.raises(ValidationError, match="names a class twice"):
        DataConfig(classes=("3", "3"))
    with pytest.raises(ValidationError, match="at least 2 items"):
        DataConfig(classes=("3",))
    assert len(load(DataConfig(classes=("3", "seven")), any_classes=True).batch) == 1797  # of the real images, not of candidates


def test_classes_of_a_folder_with_groups_and_a_given_split(tmp_path: Path):
    make_folder(tmp_path / "train", classes=("bird", "cat", "dog"), num=2)
    make_folder(tmp_path / "test", classes=("bird", "cat", "dog"), num=1)
    (tmp_path / "train" / "bird" / "0.png").write_text("not an image, and not read")
    (tmp_path / "train" / "fish").mkdir()
    settings = {"group_pattern": r"(cat|dog)/", "classes": ("dog", "cat")}
    found = load(folder(tmp_path, **settings))
    assert found.batch.labels.tolist() == [1, 1, 0, 0, 1, 0]
    assert found.groups == ("cat", "cat", "dog", "dog", "cat", "dog")
    assert found.given == ("train",) * 4 + ("test",) * 2
    assert (found.spec.class_names, found.quarantined) == (("dog", "cat"), {})


def test_classes_of_parquet_and_npz(tmp_path: Path):
    write_parquet(tmp_path / "train-0.parquet", [1, 0, 2, 1], ["cat", "dog", "eel"], {"patient": list("abcd")})
    write_parquet(tmp_path / "test-0.parquet", [2, 1, 0], ["cat", "dog", "eel"], {"patient": list("efg")})
    found = load(parquet(tmp_path, group_column="patient", classes=("eel", "dog")))
    assert found.batch.labels.tolist() == [1, 0, 1, 0, 1]
    assert found.origins == tuple(
        f"{name}-0.parquet#{row}" for name, row in [("train", 0), ("train", 2), ("train", 3), ("test", 0), ("test", 1)]
    )
    assert found.groups == ("a", "c", "d", "e", "f")
    assert found.given == ("train",) * 3 + ("test",) * 2
    np.testing.assert_array_equal(found.batch.images[1], np.asarray(picture(2)).transpose(2, 0, 1))
    config = npz(
        tmp_path / "a.npz", images=np.arange(4, dtype=np.uint8)[:, None, None].repeat(8, 1).repeat(8, 2), labels=[7, 3, 9, 7]
    )
    some = load(config.model_copy(update={"classes": ("9", "7")}))
    assert some.batch.images[:, 0, 0, 0].tolist() == [0, 2, 3]
    assert some.batch.labels.tolist() == [1, 0, 1]


def test_a_folder_of_unlabelled_images_leaves_the_labelled_ones_as_they_were(pets: Path):
    before = load(folder(pets))
    (pets / "any" / "deep").mkdir(parents=True)
    picture(900).save(pets / "any" / "a.png")
    picture(901).save(pets / "any" / "deep" / "b.png")
    found = load(folder(pets, unlabelled="any"))
    assert found.batch.labels.tolist() == [0, 0, 0, 1, 1, 1, UNLABELLED, UNLABELLED]
    assert found.spec.class_names == ("cat", "dog")
    assert found.batch.keys[:6] == before.batch.keys
    assert found.origins == (*before.origins, "any/a.png", "any/deep/b.png")
    np.testing.assert_array_equal(found.batch.images[:6], before.batch.images)
    assert found.spec.fingerprint != before.spec.fingerprint
    assert load(folder(pets)).spec.class_names == ("any", "cat", "dog")  # as it was: not asked for, not guessed
    some = load(folder(pets, unlabelled="any", classes=("dog", "cat")))
    assert some.batch.labels.tolist() == [1, 1, 1, 0, 0, 0, UNLABELLED, UNLABELLED]
    with pytest.raises(ConfigError, match=r"has no class 'any'; its classes are cat, dog"):
        load(folder(pets, unlabelled="any", classes=("any", "cat")))


def test_unlabelled_images_beside_a_given_split(tmp_path: Path):
    make_folder(tmp_path / "train", classes=("cat", "dog", "none"), num=2)
    make_folder(tmp_path / "test", classes=("cat", "dog", "none"), num=1)
    make_folder(tmp_path, classes=("none",), num=1)
    found = load(folder(tmp_path, unlabelled="none"))
    assert found.spec.class_names == ("cat", "dog")
    assert found.batch.labels.tolist() == [0, 0, 1, 1, 0, 1, -1, -1, -1, -1]
    assert found.origins[-4:] == ("none/0.png", "train/none/0.png", "train/none/1.png", "test/none/0.png")
    assert found.given is not None
    assert found.given[-4:] == ("train", "train", "train", "test")


def test_unlabelled_rows_of_parquet(tmp_path: Path):
    file = tmp_path / "a.parquet"
    write_parquet(file, [1, None, 0, -1], ["cat", "dog"])
    with pytest.raises(DataError, match=r"row 1 is None, .*data.unlabelled=-1 takes them as unlabelled"):
        load(parquet(file))
    assert load(parquet(file, unlabelled=-1)).batch.labels.tolist() == [1, -1, 0, -1]
    write_parquet(file, ["dog", "?", "cat", None], None)
    found = load(parquet(file, unlabelled="?"))
    assert (found.spec.class_names, found.batch.labels.tolist()) == (("cat", "dog"), [1, -1, 0, -1])
    write_parquet(file, [1, 2, 0, 2], ["cat", "dog", "unknown"])
    found = load(parquet(file, unlabelled="unknown"))
    assert (found.spec.class_names, found.batch.labels.tolist()) == (("cat", "dog"), [1, -1, 0, -1])
    write_parquet(file, [1.0, float("nan"), 0.0], ["cat", "dog"])  # what pandas makes of whole numbers with gaps
    assert load(parquet(file, unlabelled=-1)).batch.labels.tolist() == [1, -1, 0]
    with pytest.raises(DataError, match=r"row 0 is 1.0"):
        load(parquet(file))


def test_unlabelled_rows_of_npz(tmp_path: Path):
    images = np.zeros((4, 8, 8), np.uint8)
    config = npz(tmp_path / "a.npz", images=images, labels=[7, -1, 3, 255])
    assert load(config).spec.class_names == ("-1", "3", "7", "255")
    found = load(config.model_copy(update={"unlabelled": "255"}))
    assert (found.spec.class_names, found.batch.labels.tolist()) == (("3", "7"), [1, -1, 0, -1])


def test_unlabelled_images_that_are_not_there_are_refused(tmp_path: Path, pets: Path):
    with pytest.raises(DataError, match=r"no folder 'nobody', as data.unlabelled calls it; make it or leave it out"):
        load(folder(pets, unlabelled="nobody"))
    (pets / "any").mkdir()
    with pytest.raises(DataError, match=r": folder 'any' has no images; add some"):
        load(folder(pets, unlabelled="any"))
    with pytest.raises(ConfigError, match=r"every digit has a label; split.pool hides"):
        load(DataConfig(unlabelled="any"))
    write_parquet(tmp_path / "a.parquet", [0, 1], ["cat", "dog"])
    with pytest.raises(DataError, match=r"data.unlabelled='-1', and every image has a label; leave it out"):
        load(parquet(tmp_path / "a.parquet", unlabelled="-1"))
    write_parquet(tmp_path / "b.parquet", [None, -1], None)
    with pytest.raises(DataError, match=r"none of its 2 images has a label"):
        load(parquet(tmp_path / "b.parquet", unlabelled="-1"))


# Conversions


def test_16_bit_keeps_256_levels(pets: Path):
    levels = (np.arange(256, dtype=np.uint32) * 257).astype(np.uint16).reshape(16, 16)
    Image.fromarray(levels).save(pets / "cat" / "x.png")
    Image.fromarray(levels).save(pets / "cat" / "y.tif")
    Image.fromarray((levels / 65535).astype(np.float32)).save(pets / "cat" / "z.tif")
    pixels, converted = one(pets)
    np.testing.assert_array_equal(pixels[0].ravel(), np.arange(256))
    assert (converted["16-bit scaled"], converted["float scaled"], converted["grey to RGB"]) == (2, 1, 3)
    np.testing.assert_array_equal(one(pets, "z.tif")[0], pixels)


def test_floats_of_an_unknown_range_are_quarantined(pets: Path):
    Image.fromarray(np.full((16, 16), 300, np.float32)).save(pets / "cat" / "x.tif")
    found = load(folder(pets, max_unreadable=0.5))
    assert found.quarantined == {"cat/x.tif": "float pixels from 300 to 300, expected [0, 1]; save it with 8 or 16 bits"}


def test_exif_orientation_is_applied(pets: Path):
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise
    picture(5).save(pets / "cat" / "x.png", exif=exif)
    pixels, converted = one(pets)
    np.testing.assert_array_equal(pixels, np.rot90(np.asarray(picture(5)), -1).transpose(2, 0, 1))
    assert converted == {"EXIF rotated": 1}


@pytest.mark.parametrize(("background", "level"), [("white", 255), ("black", 0), ("grey", 128)])
def test_transparency_shows_the_background(pets: Path, background: str, level: int):
    half = picture(5, mode="RGBA")
    half.putalpha(Image.fromarray(np.repeat(np.uint8([[0, 255]]), 16, 0).repeat(8, 1)))
    half.save(pets / "cat" / "x.png")
    pixels, converted = one(pets, background=background)
    assert (pixels[:, :, :8] == level).all()
    np.testing.assert_array_equal(pixels[:, :, 8:], np.asarray(half)[:, 8:, :3].transpose(2, 0, 1))
    assert converted == {f"alpha composited on {background}": 1}


@pytest.mark.parametrize("mode", ["LA", "P"])
def test_transparent_grey_and_palette(pets: Path, mode: str):
    if mode == "LA":
        Image.merge("LA", [Image.new("L", (16, 16), 10), Image.new("L", (16, 16), 0)]).save(pets / "cat" / "x.png")
    else:
        palette = Image.new("P", (16, 16), 0)
        palette.putpalette([10, 10, 10, 200, 0, 0])
        palette.save(pets / "cat" / "x.png", transparency=0)
    pixels, converted = one(pets)
    assert (pixels == 255).all()
    assert converted["alpha composited on white"] == 1


def test_opaque_alpha_is_no_conversion(pets: Path):
    whole = picture(5)
    whole.putalpha(255)
    whole.save(pets / "cat" / "x.png")
    assert one(pets)[1] == {}


def test_cmyk_palette_bits_and_animations(pets: Path):
    Image.new("CMYK", (16, 16), (0, 255, 255, 0)).save(pets / "cat" / "x.tif")
    Image.new("1", (16, 16), 1).save(pets / "cat" / "b.png")
    picture(7).quantize(16).save(pets / "cat" / "p.png")
    picture(8).save(pets / "cat" / "a.webp", save_all=True, append_images=[picture(9)], lossless=True)
    found = load(folder(pets))
    images = dict(zip(found.origins, found.batch.images, strict=True))
    assert images["cat/x.tif"][:, 0, 0].tolist() == [255, 0, 0]
    assert (images["cat/b.png"] == 255).all()
    np.testing.assert_array_equal(images["cat/a.webp"], np.asarray(picture(8)).transpose(2, 0, 1))
    assert found.converted == {
        "1-bit expanded": 1,
        "CMYK converted": 1,
        "animated: first frame": 1,
        "grey to RGB": 1,
        "palette expanded": 1,
    }


def test_grey_images_stored_as_rgb_are_grey_and_colour_can_be_dropped(tmp_path: Path, pets: Path):
    for name in ("cat", "dog"):
        (tmp_path / "grey" / name).mkdir(parents=True)
        Image.new("RGB", (8, 8), (9, 9, 9)).save(tmp_path / "grey" / name / "0.png")
    found = load(folder(tmp_path / "grey"))
    assert (found.spec.image_shape, found.converted) == ((1, 8, 8), {"RGB to grey": 2})
    assert (found.batch.images == 9).all()
    pixels = load(folder(pets, channels=1)).batch.images
    np.testing.assert_array_equal(pixels[0, 0], np.asarray(picture(0).convert("L")))


# Sizes


@pytest.mark.parametrize(("fit", "converted"), [("crop", "cropped"), ("pad", "padded"), ("stretch", "stretched")])
def test_other_aspect_ratios(tmp_path: Path, fit: str, converted: str):
    wide = np.zeros((16, 32, 3), np.uint8)
    wide[:, 8:24] = 200  # what a centre crop keeps
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        Image.fromarray(wide).save(tmp_path / name / "0.png")
    found = load(folder(tmp_path, size_px=8, fit=fit, filter="box"))
    image = found.batch.images[0, 0]
    if fit == "crop":
        assert (image == 200).all()
    elif fit == "pad":
        assert image[:, 0].tolist() == [255, 255, 0, 0, 0, 0, 255, 255]
    else:
        assert image[0].tolist() == [0, 0, 200, 200, 200, 200, 0, 0]
    assert found.converted == {converted: 2, "resized": 2, "RGB to grey": 2}
    assert found.sizes == {"32x16": 2}


def test_sizes_that_need_a_setting(tmp_path: Path):
    mixed = make_folder(tmp_path / "mixed")
    picture(1, (20, 24)).save(mixed / "cat" / "9.png")
    with pytest.raises(DataError, match=r"2 sizes, 16x16 \(6\), 20x24 \(1\).*data.size_px=32"):
        load(folder(mixed))
    with pytest.raises(DataError, match=r"20x16 images aren't square; data.size_px=16"):
        load(folder(make_folder(tmp_path / "wide", size=(20, 16))))
    with pytest.raises(DataError, match=r"30x30; the size must be a multiple of 4.*data.size_px=32"):
        load(folder(make_folder(tmp_path / "odd", size=(30, 30))))
    with pytest.raises(DataError, match=r"data.size_px=300.*nearest is data.size_px=256"):
        load(folder(mixed, size_px=300))
    with pytest.raises(DataError, match=r"nearest is data.size_px=8"):
        load(folder(mixed, size_px=5))


# What can't be read


def test_broken_files_are_quarantined_with_the_reason(pets: Path):
    (pets / "cat" / "text.png").write_text("I am no picture")
    (pets / "cat" / "half.png").write_bytes(png(picture(0))[:400])
    (pets / "cat" / "phone.heic").write_bytes(b"")
    (pets / "cat" / "notes.txt").write_text("not an image, and doesn't pretend")
    (pets / "cat" / ".hidden.png").write_text("not read, and listed")
    (pets / "README.md").write_text("nor this")
    found = load(folder(pets, max_unreadable=0.4))
    listed = {"cat/text.png", "cat/half.png", "cat/phone.heic", "cat/notes.txt", "cat/.hidden.png", "README.md"}
    assert set(found.quarantined) == listed
    assert found.quarantined["cat/text.png"].startswith("not an image")
    assert "cut off" in found.quarantined["cat/half.png"]
    assert found.quarantined["cat/notes.txt"] == "not an image file"
    assert len(found.batch) == 6
    with pytest.raises(DataError, match=r"3 of 9 images are unreadable.*max_unreadable=0.01 allows 0.*First: cat/half.png: "):
        load(folder(pets))


def test_too_many_pixels_are_refused_from_the_header(pets: Path):
    picture(0, (20, 20)).save(pets / "cat" / "x.png")
    found = load(folder(pets, max_pixels=300, max_unreadable=0.5))
    assert found.quarantined == {"cat/x.png": "more than data.max_pixels=300 pixels"}
    before = Image.MAX_IMAGE_PIXELS
    load(folder(pets, size_px=16, max_pixels=10**9))
    assert before == Image.MAX_IMAGE_PIXELS


def test_links_that_leave_or_loop_are_not_followed(tmp_path: Path, pets: Path):
    outside = tmp_path / "secret.png"
    picture(1).save(outside)
    (pets / "cat" / "loop").symlink_to(pets)
    (pets / "bird").symlink_to(pets)
    (pets / "cat" / "self.png").symlink_to(pets / "cat" / "self.png")
    (pets / "cat" / "out.png").symlink_to(outside)
    (pets / "cat" / "in.png").symlink_to(pets / "cat" / "0.png")
    os.mkfifo(pets / "cat" / "pipe.png")
    found = load(folder(pets, max_unreadable=0.5))
    assert found.origins.count("cat/in.png") == 1
    assert len(found.batch) == 7
    assert found.spec.class_names == ("cat", "dog")
    assert found.quarantined == {
        "bird": "a link to a folder or to nothing: not followed",
        "cat/loop": "a link to a folder: not followed",
        "cat/out.png": "a link that leaves the folder: not followed",
        "cat/pipe.png": "not a regular file",
        "cat/self.png": "a link to nothing",
    }
    assert len(digest(folder(pets))) == 64


def test_folders_that_are_no_data_set(tmp_path: Path, pets: Path):
    with pytest.raises(DataError, match=r"data.path='nowhere': no such file or folder \(looked in"):
        load(folder(Path("nowhere")))
    with pytest.raises(DataError, match=r"is a file, and data.source=folder"):
        load(folder(pets / "cat" / "0.png"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no class folders in it"):
        load(folder(tmp_path / "empty"))
    with pytest.raises(DataError, match="images lie directly in it; expected one folder a class"):
        load(folder(pets / "cat"))
    (pets / "fish").mkdir()
    with pytest.raises(DataError, match="class folder 'fish' has no images"):
        load(folder(pets))
    with pytest.raises(DataError, match="one class only, 'cat'"):
        load(folder(make_folder(tmp_path / "one", classes=("cat",))))


def test_settings_of_another_source_are_refused(pets: Path):
    with pytest.raises(ConfigError, match=r"digits brings its images"):
        load(DataConfig(path=str(pets)))
    with pytest.raises(ConfigError, match=r"data.group_column is for parquet and npz"):
        load(folder(pets, group_column="patient"))
    with pytest.raises(ConfigError, match=r"data.group_pattern is for data.source=folder"):
        load(DataConfig(group_pattern="(.)"))
    with pytest.raises(ConfigError, match=r"data.path is not given"):
        load(DataConfig(source="npz"))


def test_relative_paths_are_looked_for_where_the_data_is(pets: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SYNTHGEN_DATA", str(pets.parent))
    assert len(load(folder(Path("pets"))).batch) == 6


def test_fingerprint_and_digest_change_with_the_data(pets: Path):
    before, source = load(folder(pets)).spec.fingerprint, digest(folder(pets))
    assert (load(folder(pets)).spec.fingerprint, digest(folder(pets))) == (before, source)
    (pets / "cat" / "2.png").rename(pets / "dog" / "9.png")
    assert load(folder(pets)).spec.fingerprint != before
    assert digest(folder(pets)) != source
    assert digest(DataConfig()) == digest(DataConfig())


def test_candidates_may_be_of_one_class(tmp_path: Path):
    root = tmp_path / "candidates"
    (root / "cat").mkdir(parents=True)
    picture(1, (16, 16)).save(root / "cat" / "1.png")
    (root / "dog").mkdir()
    with pytest.raises(DataError, match="dog"):
        load(folder(root))
    (root / "dog").rmdir()
    with pytest.raises(DataError, match="one class only"):
        load(folder(root))
    assert len(load(folder(root), any_classes=True).batch) == 1
