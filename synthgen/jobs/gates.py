"""Candidates -> what the gate says of them, with networks trained on the train fold alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import nn

from synthgen import randomness, storage, training
from synthgen.config.schema import RunConfig
from synthgen.errors import ConfigError, DataError, StorageError
from synthgen.gate import filters, judge
from synthgen.jobs.candidates import load_candidates
from synthgen.jobs.order import Order
from synthgen.jobs.real import Split
from synthgen.metrics import features as feature_metrics
from synthgen.metrics.neighbours import nearest_shifted
from synthgen.models.classifier import Classifier, FeatureLayer, probabilities
from synthgen.shards import table
from synthgen.types import Batch, DatasetSpec, FeatureSet, GateReport, Silent


def features(order: Order, split: Split, out: Path) -> None:
    """Split -> the gate's networks, trained on the train fold alone: an extractor, and a judge blind to each fold."""
    config = order.config
    settings = {**order.section("features", "classifier", "augment", "seed"), "device": order.device}
    with order.stage(out, "features", settings, {"split": split.digest}) as work:
        if not work.done:
            batch = split.role("train")
            fold = folds(batch.labels, config.features.folds, config.seed)
            order.progress.start("features", config.features.folds + 1)
            for number in range(-1, config.features.folds):
                rows = fold != number if number >= 0 else np.ones(len(batch), dtype=bool)
                network = _judge_network(config, split.spec, config.seed + number + 1)
                training.fit(
                    network,
                    [(batch.take(rows), network.config.batch_size)],
                    steps=network.config.steps,
                    seed=config.seed + number + 1,
                    task="features of one network",
                    progress=Silent(),
                    device=order.device,
                )
                name = f"judge-{number}.safetensors" if number >= 0 else "extractor.safetensors"
                work.write_bytes(name, _state(network.network))
                order.progress.advance("features")
    order.progress.finish("features", f"{config.features.folds + 1} networks on the train fold, {storage.seconds(out):.0f} s")


def folds(labels: np.ndarray, num: int, seed: int) -> np.ndarray:
    """Fold of each image, classes spread evenly over the folds."""
    order = randomness.stream(seed, "folds").permutation(len(labels))
    fold = np.empty(len(labels), dtype=np.int64)
    fold[order[np.argsort(labels[order], kind="stable")]] = np.arange(len(labels)) % num
    return fold


def gate(order: Order, split: Split, networks: Path, candidates: Path, out: Path, name: str) -> None:
    """Candidates -> out/gate.json, out/scores.parquet: which samples are kept, and whether the set is accepted.

    Raises:
        DataError: candidates of another shape or with classes that the real images don't have; too few images.
    """
    config = order.config
    batch, _, digest = load_candidates(candidates, split.spec, config)
    settings = {**order.section("gate", "features", "seed"), "device": order.device}
    inputs = {"split": split.digest, "features": storage.folder_digest(networks), "candidates": digest}
    with order.stage(out, f"gate {name}", settings, inputs) as work:
        if not work.done:
            order.progress.start(f"gate {name}", 4)
            judging = _Judging(order, split, networks)
            real = judging.real()
            order.progress.advance(f"gate {name}")
            evidence = judging.evidence(batch)
            order.progress.advance(f"gate {name}")
            sifted = filters.sift(evidence, real, config.gate)
            order.progress.advance(f"gate {name}")
            report = judge.judge(evidence, real, sifted, config.gate, split.spec.class_names, config.seed)
            order.progress.advance(f"gate {name}")
            work.write_json("gate.json", report.to_json())
            distance, nearest = nearest_shifted(batch.images, real.train.images, config.gate.search_px, config.gate.search_flip)
            keys = real.train.features.keys
            columns: dict[str, Any] = {"key": list(batch.keys), "label": batch.labels}
            columns |= {signal: sifted.signals[signal] for signal in filters.FAMILIES}
            columns |= {"nearest": [keys[int(i)] for i in nearest], "nearest_distance": distance.double().numpy()}
            table.write(work.path("scores.parquet"), columns)
    report = load_gate(out)
    dropped = ", ".join(f"{reason} {count}" for reason, count in report.reason_counts().items()) or "none"
    line = f"{report.verdict}: {len(report.kept)} of {report.num_candidates} kept (dropped: {dropped})"
    order.progress.finish(f"gate {name}", f"{line}, {storage.seconds(out):.1f} s")


def check_sizes(order: Order, split: Split) -> None:
    """Refuses to start with fewer images than the gate's metrics need.

    Raises:
        DataError: too few reference images; a ConfigError where too few candidates are asked for.
    """
    num, need = len(split.role("reference")), 2 * judge.MIN_SIDE
    if num < need:
        raise DataError(
            f"split.reference: {num} images, and the gate's metrics need {need} ({judge.MIN_SIDE} against {judge.MIN_SIDE}); "
            f"give split.reference={need} or more, or more images"
        )
    if order.config.generate.num < need:
        raise ConfigError(f"generate.num={order.config.generate.num}: the gate's metrics need {need} candidates or more")


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


class _Judging:
    """The gate's networks, loaded once, and what they say of images."""

    def __init__(self, order: Order, split: Split, networks: Path) -> None:
        config = order.config
        self.order, self.split = order, split
        self.judges = [
            self._load(networks / f"judge-{number}.safetensors", config.seed + number + 1)
            for number in range(config.features.folds)
        ]
        self.extractor = FeatureLayer(self._load(networks / "extractor.safetensors", config.seed))
        self.id = feature_metrics.extractor_id(self.extractor, f"domain {split.spec.name}")
        self.fold = folds(split.role("train").labels, config.features.folds, config.seed)

    def _load(self, path: Path, seed: int) -> Any:
        module = _judge_network(self.order.config, self.split.spec, seed)
        module.network.load_state_dict(load_tensors(path.read_bytes()))
        return module.network.eval().to(self.order.device)

    def features(self, batch: Batch) -> FeatureSet:
        return feature_metrics.extract(self.extractor, [batch], self.id, self.order.device)

    def evidence(self, batch: Batch, out_of_fold: bool = False) -> filters.Evidence:
        """Features and class probabilities; of train images from the networks that were blind to them."""
        each = np.stack([probabilities(network, batch.images, self.order.device) for network in self.judges])
        judged = each[self.fold, np.arange(len(batch))] if out_of_fold else each.mean(0)
        return filters.Evidence(batch.images, self.features(batch), judged)

    def real(self) -> filters.Real:
        reference = self.split.role("reference")
        blurred = Batch(filters.blurred(reference.images), reference.labels, reference.keys)
        return filters.Real(
            train=self.evidence(self.split.role("train"), out_of_fold=True),
            val=self.evidence(self.split.role("val")),
            reference=self.evidence(reference),
            blurred=self.features(blurred),
        )


def _judge_network(config: RunConfig, spec: DatasetSpec, seed: int) -> Classifier:
    own = config.features
    settings = config.classifier.model_copy(update={"width": own.width, "steps": own.steps})
    return Classifier(settings, spec, seed, config.augment, dim=own.dim)


def _state(network: nn.Module) -> bytes:
    return save_tensors({name: tensor.contiguous() for name, tensor in network.state_dict().items()})
