"""Candidates -> what the gate says of them, with networks trained on real images alone."""

from __future__ import annotations

import zlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from synthgen import extraction, randomness, sampling, storage, training
from synthgen.config.schema import RunConfig
from synthgen.data.folds import folds
from synthgen.data.planted import blurred
from synthgen.errors import CheckpointError, ConfigError, DataError, StorageError
from synthgen.gate import filters, judge
from synthgen.gate.evidence import Evidence, Real
from synthgen.gate.least import LEAST
from synthgen.gate.sensitivity import planted_recall
from synthgen.jobs import backbones, pools
from synthgen.jobs.candidates import label_plan, load_candidates
from synthgen.jobs.order import Order
from synthgen.jobs.real import Split
from synthgen.metrics import extractors
from synthgen.models.classifier import Classifier, ClassifierNetwork, FeatureLayer, probabilities
from synthgen.models.defects import DefectDetector, margins
from synthgen.shards import table
from synthgen.types import UNLABELLED, Batch, DatasetSpec, FeatureSet, GateReport, Progress, Silent
from synthgen.workers import Pool

CACHE = "features-cache"
"""Folder beside the networks that holds images' features; it may be deleted at any time."""
NEVER_CHANGE_A_BYTE = ("path", "sha256", "cache", "devices", "init_from")
"""Keys of `features` that no stage's fingerprint covers: the weights count as an input, wherever they lie."""
EXTRACTOR_KEYS = (*NEVER_CHANGE_A_BYTE, "extractor", "size_px")
"""Keys of `features` that the networks don't depend on: another extractor needs no other judges."""

START = "features.init_from"

DEFECT_FOLDS = 2
"""Networks of the defect detector, each blind to a half of the real images."""
DETECTOR_ROLES = ("train", "val", "reference")


def features(order: Order, split: Split, out: Path, pool: Pool | None = None) -> None:
    """Split -> the gate's networks: an extractor and a judge blind to each fold of train, and the detector of defects.

    Extractor and judges are trained on the train fold alone. The detector needs no labels: it is trained on train, val and
    reference, in two halves, and what it says of a real image is said by the network that was blind to it. The networks
    don't depend on each other, so a pool trains several at a time. With `features.init_from` extractor and judges start from
    another run's extractor, which was trained on none of these images.

    Raises:
        CheckpointError: see `check_start`.
    """
    own = order.config.features
    settings = _settings(order, ("features", "classifier", "augment", "seed"), EXTRACTOR_KEYS)
    inputs = {"split": split.digest}
    before: backbones.Origins = ()
    if own.init_from:
        inputs["init_from"] = backbones.digest(Path(own.init_from), START)
        before = backbones.trained_on(Path(own.init_from), START)
    with order.stage(out, "features", settings, inputs) as work:
        if not work.done:
            check_start(order, split)
            names = [f"defects-{number}" for number in range(DEFECT_FOLDS if own.defect_steps else 0)]  # the longest first
            names += ["extractor", *(f"judge-{number}" for number in range(own.folds))]
            order.progress.start("features", len(names))
            quiet = replace(order, progress=Silent())
            tasks = [_NetworkTask(quiet, split, name) for name in names]
            done = (pool or Pool(1)).map(_train_network, tasks, order.progress)
            for name, weights in zip(names, done, strict=True):
                work.write_bytes(f"{name}.safetensors", weights)
            backbones.write_trained_on(work.path(backbones.TRAINED_ON), split, before)
            if own.cache:
                Judging(order, split, out).remember_real()
    words = "a defect detector" if own.defect_steps else "no defect detector"
    order.progress.finish("features", f"{own.folds + 1} networks on the train fold, {words}, {storage.seconds(out):.0f} s")


@dataclass(frozen=True)
class _NetworkTask:
    order: Order
    split: Split
    name: str


def _train_network(task: _NetworkTask, progress: Progress) -> bytes:
    """The weights of one of the gate's networks."""
    order, split, config = task.order, task.split, task.order.config
    module: Classifier | DefectDetector
    kind, _, number = task.name.partition("-")
    if kind == "defects":
        everything, half = _detector_pool(split, config.seed)
        module, batch = _detector(config, split.spec, int(number)), everything.take(half != int(number))
    else:
        batch = split.role("train")
        if kind == "judge":
            batch = batch.take(_judge_folds(split, config) != int(number))
        module = _judge_network(config, split.spec, config.seed + (int(number) + 1 if number else 0))
        if config.features.init_from:
            module.network.load_state_dict(_body(_start(order, split)), strict=False)
    training.fit(
        module,
        [(batch, module.config.batch_size)],
        steps=module.config.steps,
        seed=module.seed,
        task="features of one network",
        progress=Silent(),
        device=order.device,
    )
    progress.advance("features")
    return save_tensors({name: tensor.contiguous() for name, tensor in module.network.state_dict().items()})


def _start(order: Order, split: Split) -> ClassifierNetwork:
    """The network of `features.init_from`.

    Raises:
        CheckpointError: it can't be read, may have seen the test images (`backbones.read`), or has other sizes.
    """
    own = order.config.features
    found = backbones.read(Path(own.init_from or ""), START, split)
    width, dim = found.to_features.in_features // 4, found.to_features.out_features
    if (width, dim) != (own.width, own.dim):
        raise CheckpointError(
            f"{START}={own.init_from}: its network has features.width={width} and features.dim={dim}, here they are {own.width} "
            f"and {own.dim}; give features.width={width} features.dim={dim}"
        )
    return found


def _body(network: ClassifierNetwork) -> dict[str, Tensor]:
    """All weights but those of the class layer."""
    return {name: tensor for name, tensor in network.state_dict().items() if not name.startswith("head.")}


def _settings(order: Order, sections: tuple[str, ...], left_out: tuple[str, ...]) -> dict[str, Any]:
    """What a stage's fingerprint covers: these sections, `features` without the keys left out, and the device."""
    found = order.section(*sections)
    own = {name: value for name, value in found["features"].items() if name not in left_out}
    return {**found, "features": own, "device": order.device}


def _detector_pool(split: Split, seed: int) -> tuple[Batch, np.ndarray]:
    """All real images that the gate may see, without labels, and the half that each is in."""
    pool = Batch.concatenate([split.role(role) for role in DETECTOR_ROLES])
    plain = Batch(pool.images, np.zeros(len(pool), np.int64), pool.keys)
    blocks: list[np.ndarray] = []
    start = 0
    for role in DETECTOR_ROLES:  # no block is in two roles, but each role counts its own from 0
        blocks.append(split.blocks(role) + start)
        start = int(blocks[-1].max(initial=start - 1)) + 1
    return plain, blind_folds(plain.labels, DEFECT_FOLDS, seed, np.concatenate(blocks))


def _judge_folds(split: Split, config: RunConfig) -> np.ndarray:
    return blind_folds(split.role("train").labels, config.features.folds, config.seed, split.blocks("train"))


def blind_folds(labels: np.ndarray, num: int, seed: int, blocks: np.ndarray) -> np.ndarray:
    """Fold of each image, classes spread evenly over the folds: the network that is blind to it.

    Images of one block (one patient's, near duplicates) share their fold, so the network that judges one has seen none of
    them. But a judge has to know every class: a class that would lie in one fold as a whole (all of it is one patient's) is
    dealt image by image. A class of one image has one judge that doesn't know it.
    """
    order = randomness.stream(seed, "folds").permutation(len(labels))
    fold = np.empty(len(labels), dtype=np.int64)
    fold[order[np.argsort(labels[order], kind="stable")]] = np.arange(len(labels)) % num
    if len(np.unique(blocks)) == len(blocks):
        return fold
    whole = folds(labels, num, seed, "folds/blocks", blocks)
    found = np.where(whole >= 0, whole, blocks % num)
    for label in np.unique(labels):
        own = labels == label
        if len(np.unique(found[own])) == 1:
            found[own] = fold[own]
    return found


def gate(order: Order, split: Split, networks: Path, candidates: Path, out: Path, name: str) -> None:
    """Candidates -> out/gate.json, out/scores.parquet: which samples are kept, and whether the set is accepted.

    Raises:
        DataError: candidates of another shape or with classes that the real images don't have; too few images.
    """
    config = order.config
    changed: list[str] = []
    batch, _, digest = load_candidates(candidates, split.spec, config, changed.append)
    plan = label_plan(candidates, split.spec)
    settings = _settings(order, ("gate", "features", "seed"), NEVER_CHANGE_A_BYTE)
    inputs = {"split": split.digest, "features": storage.folder_digest(networks), "candidates": digest}
    if config.pool.train:
        inputs["pool"] = storage.folder_digest(pools.folder_of(split))
    if config.features.extractor != "domain":
        inputs["extractor"] = extractors.check(config.features)
    with order.stage(out, f"gate {name}", settings, inputs) as work:
        if not work.done:
            order.progress.start(f"gate {name}", 4)
            judging = Judging(order, split, networks)
            real = judging.real()
            order.progress.advance(f"gate {name}", 1, "real images done")
            evidence = judging.evidence(batch)
            order.progress.advance(f"gate {name}", 1, "candidates done")
            sifted = filters.sift(evidence, real, config.gate, config.seed, order.device, plan)
            planted = planted_recall(real, sifted.calibration, config.gate, judging.evidence, config.seed, order.device)
            order.progress.advance(f"gate {name}", 1, "planted copies and defects done")
            report = judge.judge(evidence, real, sifted, config.gate, split.spec.class_names, config.seed, planted, plan)
            order.progress.advance(f"gate {name}")
            report = replace(report, notices=(*changed, *report.notices))
            work.write_json("gate.json", report.to_json())
            keys = real.copied.features.keys
            columns: dict[str, Any] = {"key": list(batch.keys), "label": batch.labels}
            columns |= sifted.signals
            columns["soft_label"] = list(evidence.probabilities.astype(np.float32))
            columns |= {"nearest": [keys[int(i)] for i in sifted.nearest], "nearest_distance": sifted.nearest_distance}
            table.write(work.path("scores.parquet"), columns)
    report = load_gate(out)
    dropped = ", ".join(f"{reason} {count}" for reason, count in report.reason_counts().items()) or "none"
    line = f"{report.verdict}: {len(report.kept)} of {report.num_candidates} kept (dropped: {dropped})"
    order.progress.finish(f"gate {name}", f"{line}, {storage.seconds(out):.1f} s")


def check_extractor(order: Order) -> None:
    """Refuses to start without the extractor's weights, what it starts from, or its devices.

    Raises:
        ConfigError: no such file, another sha256, a library or a GPU that isn't there.
        CheckpointError: nothing to start from in `features.init_from`.
    """
    extractors.check(order.config.features)
    if order.config.features.init_from:
        backbones.digest(Path(order.config.features.init_from), START)
    extraction.check_devices(order.device, order.config.features.devices)


def check_start(order: Order, split: Split) -> None:
    """Refuses a `features.init_from` that extractor and judges can't start from, before anything is trained.

    Raises:
        CheckpointError: no such network, damaged, of another width, number of features or channels; trained on another split
            of these images, or on nobody knows what.
    """
    if order.config.features.init_from:
        _start(order, split)


def check_sizes(order: Order, split: Split) -> None:
    """Refuses to start with fewer images than the gate's metrics need.

    Raises:
        DataError: too few reference images; a ConfigError where too few candidates are asked for.
    """
    side = max(LEAST.get(name, 1) for name in judge.NEEDED)
    num, need = len(split.role("reference")), 2 * side
    if num < need:
        raise DataError(
            f"split.reference: {num} images, and the gate's metrics need {need} ({side} against {side}); "
            f"give split.reference={need} or more, or more images"
        )
    asked, config = num_candidates(order, split), order.config.generate
    if asked < need:
        what = (
            f"generate.num={asked}" if config.labels != "fill" else f"generate.labels=fill: {asked} candidates fill all classes"
        )
        raise ConfigError(f"{what}: the gate's metrics need {need} candidates or more")
    if config.labels == "fill":
        _check_filled(order, split, need)


def _check_filled(order: Order, split: Split, need: int) -> None:
    """Of the classes that are filled up the reference must have enough images by itself: the others aren't compared with."""
    reference, train = split.role("reference").labels, split.role("train").labels
    known = reference[reference != UNLABELLED]
    lacking = np.flatnonzero(_lacking(order, split))
    share = np.isin(known if len(known) else train, lacking).mean()  # the reference is drawn as train is
    offered = round(share * len(reference))
    if offered < need:
        names = ", ".join(split.spec.class_names[label] for label in lacking)
        raise DataError(
            f"generate.labels=fill: about {offered} of {len(reference)} reference images are of the classes that are filled up "
            f"({names}), and the gate's metrics need {need}; give a larger split.reference, or a generate.fill_to that adds "
            "to more classes"
        )


def num_candidates(order: Order, split: Split) -> int:
    """Candidates that a generator makes: `generate.num`, or what fills up the classes.

    Raises:
        ConfigError: no class lacks anything.
    """
    config = order.config.generate
    if config.labels != "fill":
        return config.num
    return int(_lacking(order, split).sum())


def _lacking(order: Order, split: Split) -> np.ndarray:
    """Candidates that each class needs to be full."""
    config, labels = order.config.generate, split.role("train").labels
    return sampling.label_counts(labels, split.spec.num_classes, config.num, "fill", fill_to=config.fill_to)


def check_judged(judged: Path, split: Split, candidates: str) -> None:
    """Refuses a gate's word on other candidates or another split.

    Args:
        judged: a finished gate folder.
        split: the real images.
        candidates: digest of the candidates (`load_candidates`).

    Raises:
        StorageError: not a gate folder, or changed since; a DataError where it judged something else.
    """
    made = storage.read_manifest(judged)
    if not made["stage"].startswith("gate "):
        raise StorageError(f"{judged}: not a folder of `synthgen gate`")
    for what, mine in (("candidates", candidates), ("split", split.digest)):
        if made["inputs"][what] != mine:
            raise DataError(f"{judged}: judged other {what} than these; run `synthgen gate` on these, or leave --gate out")
    storage.check_folder(judged, made)


def load_gate(folder: Path) -> GateReport:
    """The report of a finished gate folder."""
    path = folder / "gate.json"
    return GateReport.from_json(storage.read_json(path), str(path))


class Judging:
    """The gate's networks, loaded once, and what they say of images."""

    def __init__(self, order: Order, split: Split, networks: Path) -> None:
        config = order.config
        self.order, self.split = order, split
        if (networks / storage.STAGE_MANIFEST).is_file():  # not where they are being made
            storage.check_folder(networks)
        self.judges = [
            self._load(networks / f"judge-{number}.safetensors", _judge_network(config, split.spec, config.seed + number + 1))
            for number in range(config.features.folds)
        ]
        self.detectors = [
            self._load(networks / f"defects-{number}.safetensors", _detector(config, split.spec, number))
            for number in range(DEFECT_FOLDS if config.features.defect_steps else 0)
        ]
        if config.features.extractor == "domain":
            network = self._load(networks / "extractor.safetensors", _judge_network(config, split.spec, config.seed))
            self.extractor = extractors.domain(FeatureLayer(network), f"domain {split.spec.name}")
        else:
            self.extractor = extractors.load(config.features)
        self.cache = networks.parent / CACHE if config.features.cache else None
        self.fold = _judge_folds(split, config)
        pool, halves = _detector_pool(split, config.seed)
        self.half = dict(zip(pool.keys, halves.tolist(), strict=True))

    def _load(self, path: Path, module: Any) -> Any:
        module.network.load_state_dict(load_tensors(path.read_bytes()))
        return module.network.eval().to(self.order.device)

    def features(self, batch: Batch) -> FeatureSet:
        """Features under the chosen extractor, from the cache where they are in it."""
        devices = self.order.config.features.devices
        return extraction.feature_set(self.extractor, batch, self.order.device, devices, self.cache, self._note)

    def embed(self, images: np.ndarray) -> np.ndarray:
        """Features of images without names, which no cache can know."""
        return extraction.embed(self.extractor, images, self.order.device)

    def _note(self, line: str) -> None:
        self.order.progress.finish("features cache", line)

    def remember_real(self) -> None:
        """The real images' features into the cache, once for the candidates of all generators."""
        for role in DETECTOR_ROLES:
            self.features(self.split.role(role))
        self.features(self.blurred())

    def blurred(self) -> Batch:
        """The reference images, blurred: what the bound on FID is read from."""
        reference = self.split.role("reference")
        return Batch(blurred(reference.images), reference.labels, reference.keys)

    def evidence(self, batch: Batch, role: str | None = None) -> Evidence:
        """Everything that the gate looks at; of the real images of `role` by the networks that were blind to them.

        The detector judges every image by one network, as it does the real images that its threshold comes from: the
        mean of both is less often extreme, so a threshold of single networks would find less than it is allowed to.
        """
        each = np.stack([probabilities(network, batch.images, self.order.device) for network in self.judges])
        judged = each[self.fold, np.arange(len(batch))] if role == "train" else each.mean(0)
        found = None
        if self.detectors:
            every = np.stack([margins(network, batch.images, self.order.device) for network in self.detectors])
            found = every[[self._blind(key) for key in batch.keys], np.arange(len(batch))]
        return Evidence(batch.images, self.features(batch), judged, found)

    def _blind(self, key: str) -> int:
        """The detector's network that hasn't seen the real image of this key, or before its "|"; else one by the key."""
        source = key.split("|")[0]
        return self.half[source] if source in self.half else zlib.crc32(key.encode()) % DEFECT_FOLDS

    def real(self) -> Real:
        train, val, reference = (self.evidence(self.split.role(role), role) for role in DETECTOR_ROLES)
        seen = self.evidence(pools.with_pool(self.order, self.split)) if self.order.config.pool.train else None
        return Real(train, val, reference, self.features(self.blurred()), seen)


def _judge_network(config: RunConfig, spec: DatasetSpec, seed: int) -> Classifier:
    own = config.features
    settings = config.classifier.model_copy(update={"width": own.width, "steps": own.steps})
    return Classifier(settings, spec, seed, config.augment, dim=own.dim)


def _detector(config: RunConfig, spec: DatasetSpec, number: int) -> DefectDetector:
    own = config.features
    size = {"width": own.width, "steps": own.defect_steps, "batch_size": own.defect_batch_size}
    return DefectDetector(config.classifier.model_copy(update=size), spec, config.seed + 100 + number, config.augment)
