"""One function a job, from folders to a folder: the only place with paths and wiring.

A run folder holds config.yaml, audit/, split/, features/, train/<model>/, candidates/<model>/, gate/<model>/, select/,
shards/, gain/, report/ and verdict.json. Each is a stage (`storage.stage`): whole or to be made again, skipped when its
settings, inputs and code agree, refused when they don't.
"""

from __future__ import annotations

import platform
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
import yaml
from torch import nn

from synthgen import models, randomness, sampling, storage, tracking, training
from synthgen.config.schema import ClassifierConfig, FeaturesConfig, RunConfig
from synthgen.data import audit as auditing
from synthgen.data import sources, splits
from synthgen.data.transforms import to_float
from synthgen.errors import CheckpointError, DataError, StorageError
from synthgen.gain import arms as gain_arms
from synthgen.gain import stats, study
from synthgen.gain.study import Cell, Trained
from synthgen.gate import filters, judge
from synthgen.metrics import features as feature_metrics
from synthgen.metrics.neighbours import nearest_shifted
from synthgen.models.base import read_header, to_bytes
from synthgen.models.classifier import Classifier, FeatureLayer, probabilities
from synthgen.shards import manifest, parquet, raw, read, table, webdataset
from synthgen.types import (
    Batch,
    DatasetSpec,
    FeatureSet,
    GainReport,
    GateReport,
    Progress,
    Provenance,
    SampleInfo,
    Shard,
    ShardManifest,
    Silent,
    Verdict,
)
from synthgen.workers import Pool, single_thread

ROLES = ("train", "val", "reference", "test")
CHECKPOINT = "generator.safetensors"
CANDIDATES = "candidates.parquet"
VERDICT_SCHEMA = "synthgen.verdict/1"
T = TypeVar("T")


@dataclass(frozen=True)
class Order:
    """What every job is given besides its folders.

    Attributes:
        config: all settings.
        restart: make stages again whose settings, inputs or code changed, instead of refusing.
        progress: who watches.
    """

    config: RunConfig
    restart: bool = False
    progress: Progress = Silent()  # noqa: RUF009  (stateless)

    @property
    def device(self) -> str:
        return training.pick_device(self.config.device)

    @property
    def workers(self) -> int:
        """One process on a GPU, else what the settings say."""
        return 1 if self.device == "cuda" else self.config.workers

    def section(self, *names: str) -> dict[str, Any]:
        """The named sections as JSON types: what a stage's fingerprint covers."""
        return self.config.model_dump(mode="json", include=set(names))

    @contextmanager
    def stage(self, folder: Path, name: str, config: Mapping[str, Any], inputs: Mapping[str, str]) -> Iterator[storage.Stage]:
        with storage.stage(folder, name, config, inputs, self.restart) as work, single_thread():
            yield work


# Real images: audit and split


def audit(order: Order, out: Path) -> None:
    """Source -> out/audit (report.json) and out/split (train, val, reference, test, dataset.json)."""
    config, progress = order.config, order.progress
    storage.write_text(out / "config.yaml", yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True))
    settings = order.section("data", "split", "audit")
    inputs = {"source": sources.digest(config.data)}
    progress.start("audit", 2)
    with ExitStack() as stack:
        audited = stack.enter_context(order.stage(out / "audit", "audit", settings, inputs))
        split = stack.enter_context(order.stage(out / "split", "split", settings, inputs))
        if not (audited.done and split.done):
            real = sources.load(config.data)
            near = auditing.near_duplicates(real.batch.images, config.audit.near_duplicate)
            rows = splits.split(real, config.split, near)
            progress.advance("audit")
            report = auditing.audit(real, rows, config.audit, config.split, near)
            if not audited.done:
                audited.write_json("report.json", report.to_json())
            if not split.done:
                for role in ROLES:
                    labelled = role != "reference" or config.split.reference_labelled
                    raw.write(split.path(f"{role}.parquet"), [splits.role_batch(real, rows[role], labelled)], real.spec)
                split.write_json("dataset.json", real.spec.to_json())
    found = storage.read_json(out / "audit" / "report.json")
    progress.finish("audit", auditing.one_line(found))


@dataclass(frozen=True)
class Split:
    """A finished split folder."""

    folder: Path
    spec: DatasetSpec
    digest: str

    @staticmethod
    def open(folder: Path) -> Split:
        """The split in `folder`, or in its subfolder split/.

        Raises:
            StorageError: neither is a finished split.
        """
        folder = folder / "split" if (folder / "split").is_dir() else folder
        if storage.read_manifest(folder)["stage"] != "split":
            raise StorageError(f"{folder}: not a split; make one with `synthgen audit SOURCE --out FOLDER`")
        spec = DatasetSpec.from_json(storage.read_json(folder / "dataset.json"), str(folder / "dataset.json"))
        return Split(folder, spec, storage.folder_digest(folder))

    def role(self, role: str) -> Batch:
        """The images of a role. `test` is for the end of the gain study alone."""
        return raw.read(self.folder / f"{role}.parquet", self.spec)


# Generators


def train(order: Order, split: Split, model: str, out: Path) -> None:
    """Split -> out/generator.safetensors and out/train.json, trained on the train fold alone."""
    config = order.config
    own = getattr(config.generators, model)
    settings = {"model": own.model_dump(mode="json"), **order.section("augment", "seed", "precision"), "device": order.device}
    with order.stage(out, f"train {model}", settings, {"split": split.digest}) as work:
        if not work.done:
            generator = models.build(own, split.spec, config.augment, config.seed)
            done = training.fit(
                generator,
                [(split.role("train"), own.batch_size)],
                steps=own.steps,
                seed=config.seed,
                task=f"train {model}",
                progress=order.progress,
                device=order.device,
                precision=config.precision,
                folder=out,
            )
            work.write_bytes(CHECKPOINT, to_bytes(generator, trained_on=split.digest))
            about = {"losses": {"loss": done.losses}, "seconds": done.seconds, "steps": own.steps, "device": order.device}
            work.write_json("train.json", about)
    last = storage.read_json(out / "train.json")["losses"]["loss"][-1][1]
    order.progress.finish(f"train {model}", f"{own.steps} steps, last loss {last:.3f}, {storage.seconds(out):.0f} s")


def generate(order: Order, split: Split, trained: Path, out: Path) -> None:
    """Checkpoint -> out/candidates.parquet and out/candidates.json.

    Raises:
        CheckpointError: the checkpoint is missing or damaged, or was trained on another data set or another split.
    """
    config = order.config.generate
    path = trained / CHECKPOINT if trained.is_dir() else trained
    generator, sha256 = _load_generator(path, split)
    name, prefix = generator.kind, sha256[:8]
    own = getattr(order.config.generators, name)
    if name == "diffusion":  # how to sample is a setting of the job, not of the weights
        sampler = {key: getattr(own, key) for key in ("sampler", "sampling_steps", "guidance", "sigma_min", "sigma_max")}
        generator.config = generator.config.model_copy(update=sampler)
    settings = {**config.model_dump(mode="json", exclude={"batch"}), "sampler": generator.sampler, "device": order.device}
    inputs = {"split": split.digest, "checkpoint": sha256}
    with order.stage(out, f"generate {name}", settings, inputs) as work:
        if not work.done:
            task = f"generate {name}"
            order.progress.start(task, config.num)
            labels = sampling.label_plan(
                split.role("train").labels, split.spec.num_classes, config.num, config.labels, config.seed
            )
            batches = sampling.sample(
                generator, labels, seed=config.seed, chunk=config.chunk, batch=config.batch, prefix=prefix, device=order.device
            )
            raw.write(work.path(CANDIDATES), _watched(batches, order.progress, task), split.spec)
            provenance = Provenance(
                config=storage.sha256_json(settings),
                checkpoint=sha256,
                parents=inputs,
                code=storage.code_version(),
                seed=config.seed,
                sampler=generator.sampler,
                chunk=config.chunk,
                device=_device_name(order.device),
                libraries=_libraries(),
            )
            work.write_json("candidates.json", {"generator": name, "provenance": provenance.__dict__})
    order.progress.finish(f"generate {name}", f"{config.num} candidates, {storage.seconds(out):.1f} s")


def _load_generator(path: Path, split: Split) -> tuple[models.Generator, str]:
    if not path.is_file():
        raise CheckpointError(f"{path}: no such checkpoint; `synthgen train` writes {CHECKPOINT}")
    data = path.read_bytes()
    about = read_header(data, str(path))
    spec = DatasetSpec.from_json(about["spec"], str(path))
    for name in ("image_shape", "class_names", "fingerprint"):
        mine, theirs = getattr(split.spec, name), getattr(spec, name)
        if mine != theirs:
            raise CheckpointError(
                f"{path}: trained on another data set ({spec.name!r}): its {name} is {theirs!r}, here it is {mine!r}; "
                "train one on this data"
            )
    if about["trained_on"] != split.digest:
        raise CheckpointError(
            f"{path}: trained on another split of {spec.name!r}, so it may have seen this one's test images; train again"
        )
    return models.from_bytes(data, str(path)), storage.sha256_file(path)


def _watched(batches: Iterator[Batch], progress: Progress, task: str) -> Iterator[Batch]:
    for batch in batches:
        yield batch
        progress.advance(task, len(batch))


# Features and gate


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
                network = _judge_network(config.features, config.classifier, split.spec, config.seed + number + 1, config)
                settings_of = network.config
                training.fit(
                    network,
                    [(batch.take(rows), settings_of.batch_size)],
                    steps=settings_of.steps,
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
    order.progress.finish(
        f"gate {name}",
        f"{report.verdict}: {len(report.kept)} of {report.num_candidates} kept (dropped: {dropped}), {storage.seconds(out):.1f} s",
    )


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
        from safetensors.torch import load

        config = self.order.config
        module = _judge_network(config.features, config.classifier, self.split.spec, seed, config)
        module.network.load_state_dict(load(path.read_bytes()))
        return module.network.eval().to(self.order.device)

    def features(self, batch: Batch) -> FeatureSet:
        return feature_metrics.extract(self.extractor, [batch], self.id, self.order.device)

    def evidence(self, batch: Batch, out_of_fold: bool = False) -> filters.Evidence:
        """Features and class probabilities; of train images from the networks that were blind to them."""
        images = to_float(batch.images).to(self.order.device)
        each = np.stack([probabilities(network, images) for network in self.judges])
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


def _judge_network(own: FeaturesConfig, base: ClassifierConfig, spec: DatasetSpec, seed: int, config: RunConfig) -> Classifier:
    settings = base.model_copy(update={"width": own.width, "steps": own.steps})
    return Classifier(settings, spec, seed, config.augment, dim=own.dim)


def _state(network: nn.Module) -> bytes:
    from safetensors.torch import save

    return save({name: tensor.contiguous() for name, tensor in network.state_dict().items()})


# Candidates, ours and others'


def load_candidates(path: Path, spec: DatasetSpec, config: RunConfig) -> tuple[Batch, list[SampleInfo], str]:
    """Candidates from a folder of ours (`generate`, `export`), a .tar, or anything that real images can come from.

    Returns:
        The images with labels numbered as the real images' are, what is known of each, and a digest of the input.

    Raises:
        DataError: nothing there; another image shape; a class that the real images don't have; an image without a label.
    """
    if (path / CANDIDATES).is_file():
        batch = raw.read(path / CANDIDATES, spec)
        about = storage.read_json(path / "candidates.json")
        made = about["provenance"]
        infos = [
            SampleInfo(about["generator"], made["checkpoint"], made["seed"], int(key.rsplit("-", 1)[1])) for key in batch.keys
        ]
        return batch, infos, storage.folder_digest(path)
    if path.suffix == ".tar" or (path / manifest.NAME).is_file() or _holds_tars(path):
        found, names, known = read.load(path)
        infos = known or [SampleInfo(path.stem, "", 0, -1) for _ in found.keys]
        digest = storage.sha256_json([list(found.keys), sources.fingerprint(found.images, found.labels, found.keys)])
    else:
        source = source_of(path, config)
        size = {"size_px": spec.image_shape[1], "channels": spec.image_shape[0]}
        loaded = sources.load(source.data.model_copy(update={**size, "name": None, "group_column": None, "group_pattern": None}))
        found, names, digest = loaded.batch, loaded.spec.class_names, loaded.spec.fingerprint
        found = Batch(found.images, found.labels, tuple(key.replace("real-", "candidate-") for key in found.keys))
        infos = [SampleInfo(path.stem, "", 0, -1) for _ in found.keys]
    if found.images.shape[1:] != spec.image_shape:
        raise DataError(f"{path}: images of shape {found.images.shape[1:]}, the real ones have {spec.image_shape}; resize them")
    unknown = [name for name in names if name not in spec.class_names]
    if unknown:
        raise DataError(
            f"{path}: the class {unknown[0]!r} is not one of the real images' ({', '.join(spec.class_names)}); rename or remove it"
        )
    number = np.array([spec.class_names.index(name) for name in names], dtype=np.int64)
    if (found.labels < 0).any():
        raise DataError(f"{path}: {int((found.labels < 0).sum())} images have no label; the gate judges labelled samples")
    return Batch(found.images, number[found.labels], found.keys), infos, digest


def _holds_tars(path: Path) -> bool:
    return path.is_dir() and any(path.glob("*.tar"))


def source_of(path: Path, config: RunConfig) -> RunConfig:
    """The settings with `data` pointing to `path`, its kind told by what it is.

    Raises:
        DataError: no such file or folder.
    """
    if str(path) == "digits" and not path.exists():
        return config.model_copy(update={"data": config.data.model_copy(update={"source": "digits", "path": None})})
    if not path.exists():
        raise DataError(f"{path}: no such file or folder")
    kind = "npz" if path.suffix == ".npz" else "parquet" if path.suffix == ".parquet" or any(path.glob("*.parquet")) else "folder"
    return config.model_copy(update={"data": config.data.model_copy(update={"source": kind, "path": str(path)})})


# Choice, export


@dataclass(frozen=True)
class Contest:
    """The images of a gain study on disk: a split, candidates, and the gate's word on them."""

    order: Order
    split: Split
    candidates: Path
    gate: Path

    def digests(self) -> dict[str, str]:
        _, _, digest = load_candidates(self.candidates, self.split.spec, self.order.config)
        return {"split": self.split.digest, "candidates": digest, "gate": storage.folder_digest(self.gate)}

    def quiet(self) -> Contest:
        """Without the watcher, to be sent to another process."""
        return replace(self, order=replace(self.order, progress=Silent()))


@lru_cache(maxsize=2)
def _study_data(contest: Contest) -> gain_arms.StudyData:
    split = contest.split
    ungated, _, _ = load_candidates(contest.candidates, split.spec, contest.order.config)
    kept = set(load_gate(contest.gate).kept)
    gated = ungated.take(np.array([key in kept for key in ungated.keys], dtype=bool))
    return gain_arms.StudyData(split.spec, split.role("train"), split.role("val"), split.role("reference"), gated, ungated)


@dataclass(frozen=True)
class _CellTask:
    contest: Contest
    cell: Cell
    out: Path
    teacher: Path | None
    task: str


def _train_cell(task: _CellTask, progress: Progress) -> None:
    """Trains a cell of the study, unless an earlier, interrupted run has."""
    if not task.out.is_file():
        config = task.contest.order.config
        trained = study.train_cell(
            task.cell,
            _study_data(task.contest),
            config.classifier,
            config.augment,
            config.gain,
            teacher=Trained.from_bytes(task.teacher.read_bytes()) if task.teacher else None,
            device=task.contest.order.device,
            progress=Silent(),
            task=task.cell.name,
        )
        storage.write_bytes(task.out, trained.to_bytes())
    progress.advance(task.task)


def select(order: Order, split: Split, generators: dict[str, tuple[Path, Path]], out: Path, pool: Pool) -> str | None:
    """Which generator is exported and studied, chosen on val: out/select.json.

    Among those with the best gate verdict, the one whose gated samples, added to real and augmentation, give the lowest
    cross-entropy on val (mean of `gain.select_seeds` classifiers). None where no generator has a kept sample.
    """
    config = order.config
    contests = {name: Contest(order, split, candidates, judged).quiet() for name, (candidates, judged) in generators.items()}
    settings = {**order.section("classifier", "augment", "gain", "models"), "device": order.device}
    inputs = {f"{name} {key}": digest for name, contest in contests.items() for key, digest in contest.digests().items()}
    with order.stage(out, "select", settings, inputs) as work:
        if not work.done:
            usable = {name: contest for name, contest in contests.items() if load_gate(contest.gate).kept}
            cells = [Cell("synthetic_gated", seed, 0) for seed in range(config.gain.select_seeds)]
            tasks = {
                (name, cell): _CellTask(contest, cell, out / f"{storage.RESUME}-{name}-{cell.name}", None, "select")
                for name, contest in usable.items()
                for cell in cells
            }
            order.progress.start("select", len(tasks))
            pool.map(_train_cell, list(tasks.values()), order.progress)
            val = split.role("val")
            scores = {}
            for name, contest in usable.items():
                each = [study.score(Trained.from_bytes(tasks[name, cell].out.read_bytes()).val, val) for cell in cells]
                accuracy, loss = np.mean(each, axis=0)
                verdict = load_gate(contest.gate).verdict
                scores[name] = {"val_accuracy": float(accuracy), "val_loss": float(loss), "gate": verdict}
            rank = {"accept": 0, "insufficient evidence": 1, "reject": 2}
            chosen = min(scores, key=lambda name: (rank[scores[name]["gate"]], scores[name]["val_loss"])) if scores else None
            criterion = (
                f"best gate verdict, then lowest cross-entropy on val of {len(cells)} classifiers on real + augmentation + gated"
            )
            work.write_json("select.json", {"criterion": criterion, "scores": scores, "chosen": chosen})
    found = storage.read_json(out / "select.json")
    losses = ", ".join(f"{name} {s['val_loss']:.3f}" for name, s in found["scores"].items())
    order.progress.finish(
        "select", f"{found['chosen'] or 'none'} (val cross-entropy: {losses or 'no generator has kept samples'})"
    )
    chosen_name: str | None = found["chosen"]
    return chosen_name


def export(order: Order, split: Split, candidates: Path, judged: Path, out: Path) -> None:
    """Kept candidates -> shards with MANIFEST.json, byte-identical when written again.

    Raises:
        DataError: the gate kept nothing.
    """
    config = order.config
    batch, infos, digest = load_candidates(candidates, split.spec, config)
    inputs = {"split": split.digest, "candidates": digest, "gate": storage.folder_digest(judged)}
    with order.stage(out, "export", order.section("export"), inputs) as work:
        if not work.done:
            report = load_gate(judged)
            kept = set(report.kept)
            rows = np.array([i for i, key in enumerate(batch.keys) if key in kept], dtype=np.int64)
            if not len(rows):
                raise DataError(f"{judged}: the gate kept none of {len(batch)} candidates, so there is nothing to export")
            scores = table.read(judged / "scores.parquet")
            chosen = batch.take(rows)
            known = [
                replace(infos[i], scores={s: float(scores[s][i]) for s in (*filters.FAMILIES, "nearest_distance")})
                for i in rows.tolist()
            ]
            order.progress.start("export", len(config.export.formats))
            shards: list[Shard] = []
            for form in config.export.formats:
                if form == "webdataset":
                    shards += webdataset.write(out, [(chosen, known)], split.spec, config.export.shard_size)
                else:
                    shards += parquet.write(out, [(chosen, known)], split.spec, config.export.shard_size, len(chosen))
                order.progress.advance("export")
            made = _provenance(candidates, inputs)
            counts = np.bincount(chosen.labels, minlength=split.spec.num_classes)
            manifest.write(
                out,
                ShardManifest(
                    spec=split.spec,
                    shards=tuple(shards),
                    num_samples=len(chosen),
                    class_counts=dict(zip(split.spec.class_names, counts.tolist(), strict=True)),
                    gate_verdict=report.verdict,
                    provenance=made,
                ),
            )
    whole = manifest.read(out)
    order.progress.finish("export", f"{whole.num_samples} samples in {len(whole.shards)} shards, {storage.seconds(out):.1f} s")


def _provenance(candidates: Path, inputs: dict[str, str]) -> Provenance:
    """That of our candidates; for other tools' images what can be said."""
    path = candidates / "candidates.json"
    if path.is_file():
        return replace(Provenance(**storage.read_json(path)["provenance"]), parents=inputs)
    return Provenance("", "", inputs, storage.code_version(), 0, "made by another tool", 0, "unknown", {})


# Gain


def gain(order: Order, contest: Contest, out: Path, pool: Pool) -> GainReport:
    """Split, candidates and gate -> out/gain.json: what the synthetic images add, on the test split.

    The test split is opened when every network is trained and the strongest real-only arm is chosen; out/opened.json
    says so.
    """
    config, split, contest = order.config, contest.split, contest.quiet()
    arms = gain_arms.check_arms(config.gain.arms)
    settings = {**order.section("classifier", "augment", "gain"), "device": order.device}
    with order.stage(out, "gain", settings, contest.digests()) as work:
        if not work.done:
            data = _study_data(contest)
            skipped = gain_arms.skipped(arms, data)
            arms = tuple(arm for arm in arms if arm not in skipped)
            rounds = study.cells(arms, config.gain)
            # cells survive a kill (`resume`), and are removed when the stage is whole
            path = {cell: out / storage.RESUME / f"{cell.name}.safetensors" for cells in rounds for cell in cells}
            order.progress.start("gain", len(path))
            for cells in rounds:
                teachers = [
                    path[Cell("real_aug", cell.seed, 0)] if gain_arms.RECIPES[cell.recipe].pseudo else None for cell in cells
                ]
                tasks = [_CellTask(contest, c, path[c], t, "gain") for c, t in zip(cells, teachers, strict=True)]
                pool.map(_train_cell, tasks, order.progress)
            trained = {cell: Trained.from_bytes(file.read_bytes()) for cell, file in path.items()}
            best_real = study.choose_best_real(arms, trained, data.val, config.gain)
            work.write_json("opened.json", {"split": "test", "after": "all networks were trained", "best_real_on_val": best_real})
            test = split.role("test")
            on_test = {cell: study.predict(done, split.spec, config.classifier, test) for cell, done in trained.items()}
            report = study.assess(
                arms, skipped, best_real, trained, on_test, data.val, test, config.classifier.steps, config.gain
            )
            work.write_json("gain.json", report.to_json())
    report = GainReport.from_json(storage.read_json(out / "gain.json"), str(out / "gain.json"))
    order.progress.finish("gain", f"{report.verdict}: {report.reasons[0]}, {storage.seconds(out):.0f} s")
    return report


# The whole


@dataclass(frozen=True)
class _GeneratorTask:
    order: Order
    split: Split
    out: Path
    model: str


def _make_candidates(task: _GeneratorTask, progress: Progress) -> None:
    """One generator from training to candidates; "features" trains the gate's networks instead."""
    order = replace(task.order, progress=progress)
    if task.model == "features":
        features(order, task.split, task.out / "features")
        return
    train(order, task.split, task.model, task.out / "train" / task.model)
    generate(order, task.split, task.out / "train" / task.model, task.out / "candidates" / task.model)


def _gate_candidates(task: _GeneratorTask, progress: Progress) -> None:
    out, model = task.out, task.model
    gate(
        replace(task.order, progress=progress),
        task.split,
        out / "features",
        out / "candidates" / model,
        out / "gate" / model,
        model,
    )


def run(order: Order, out: Path) -> dict[str, Any]:
    """The whole factory: real images -> verdict. Returns what verdict.json holds."""
    config = order.config
    gain_arms.check_arms(config.gain.arms)
    training.pick_device(config.device)
    with storage.lock(out), Pool(order.workers) as pool:
        audit(order, out)
        split = Split.open(out)
        quiet = replace(order, progress=Silent())
        longest_first = [m for m in ("diffusion", "features", "gan", "vae") if m in (*config.models, "features")]
        pool.map(_make_candidates, [_GeneratorTask(quiet, split, out, m) for m in longest_first], order.progress)
        pool.map(_gate_candidates, [_GeneratorTask(quiet, split, out, m) for m in config.models], order.progress)
        folders = {m: (out / "candidates" / m, out / "gate" / m) for m in config.models}
        chosen = select(order, split, folders, out / "select", pool)
        report = None
        if chosen is not None:
            export(order, split, *folders[chosen], out / "shards")
            report = gain(order, Contest(order, split, *folders[chosen]), out / "gain", pool)
        gates = {m: load_gate(out / "gate" / m) for m in config.models}
        return _conclude(order, out, gates, chosen, report)


def assess(
    order: Order, real: Path, candidates: Path, out: Path, study_gain: bool, judged: Path | None = None
) -> dict[str, Any] | None:
    """Somebody's candidates against real images: the gate, and the gain study if asked for.

    Args:
        order: settings; `data` already points to the real images where they aren't split yet.
        real: a folder of `audit`, or a source of images.
        candidates: see `load_candidates`.
        out: run folder.
        study_gain: measure the gain, and conclude with a verdict.
        judged: a finished gate folder for these candidates, if there is one.
    """
    gain_arms.check_arms(order.config.gain.arms)
    with storage.lock(out), Pool(order.workers) as pool:
        split = open_or_make_split(order, real, out)
        name = candidates.stem
        if judged is None:
            features(order, split, out / "features")
            judged = out / "gate"
            gate(order, split, out / "features", candidates, judged, name)
        if not study_gain:
            return None
        report = load_gate(judged)
        studied = None
        if report.kept:
            studied = gain(order, Contest(order, split, candidates, judged), out / "gain", pool)
        return _conclude(order, out, {name: report}, name if report.kept else None, studied)


def open_or_make_split(order: Order, real: Path, out: Path) -> Split:
    """The split in a folder of `audit`; for a source of images it is made in `out` first."""
    if is_split(real):
        return Split.open(real)
    audit(order, out)
    return Split.open(out)


def is_split(path: Path) -> bool:
    """Whether `path` is a folder that `audit` made."""
    return any(
        (folder / storage.STAGE_MANIFEST).is_file() and (folder / "dataset.json").is_file() for folder in (path, path / "split")
    )


def _conclude(
    order: Order, out: Path, gates: dict[str, GateReport], chosen: str | None, report: GainReport | None
) -> dict[str, Any]:
    """verdict.json, the dashboard and the report."""
    verdict, reasons = conclude(gates, chosen, report)
    about = {
        "schema": VERDICT_SCHEMA,
        "verdict": verdict,
        "reasons": reasons,
        "best_generator": chosen,
        "arms": summarise_arms(report) if report else {},
        "gate": {
            name: {
                "verdict": gate_report.verdict,
                "reasons": list(gate_report.reasons),
                "candidates": gate_report.num_candidates,
                "kept": len(gate_report.kept),
                "dropped": gate_report.reason_counts(),
            }
            for name, gate_report in gates.items()
        },
        "seconds": _seconds(out),
        "shards": "shards" if (out / "shards" / manifest.NAME).is_file() else None,
        "report": "report/index.html",
    }
    storage.write_json(out / "verdict.json", about)
    _track(order, out, about)
    make_report(order, out)
    return about


def conclude(gates: Mapping[str, GateReport], chosen: str | None, report: GainReport | None) -> tuple[Verdict, list[str]]:
    """The verdict: "use" needs an accepting gate and a proven gain; either of them alone can reject."""
    if chosen is None or report is None:
        every = [f"{name}: {reason}" for name, gate_report in gates.items() for reason in gate_report.reasons[:2]]
        return "reject", ["no generator has a sample that passed the gate", *every]
    judged = gates[chosen]
    gate_says = [f"gate, {chosen}: {judged.verdict}", *(f"gate, {chosen}: {reason}" for reason in judged.reasons[:3])]
    gain_says = [f"gain: {reason}" for reason in report.reasons]
    if judged.verdict == "reject":
        return "reject", [*gate_says, *gain_says]
    if report.verdict == "reject":
        return "reject", [*gain_says, *gate_says]
    if judged.verdict == "accept" and report.verdict == "use":
        return "use", [*gain_says, *gate_says]
    return "insufficient evidence", [*gain_says, *gate_says]


def summarise_arms(report: GainReport) -> dict[str, Any]:
    """Arm -> mean test accuracy with its interval over seeds, and its paired difference to the strongest real-only arm."""
    against = {i.arm: i for i in report.intervals if i.baseline == report.best_real}
    summary = {}
    for arm in dict.fromkeys(row.arm for row in report.rows):
        rows = [row for row in report.rows if row.arm == arm]
        mean, low, high = stats.mean_interval(np.array([row.test_accuracy for row in rows]))
        difference = against.get(arm)
        summary[arm] = {
            "meaning": gain_arms.ARMS[arm].meaning,
            "test_accuracy": mean,
            "low": low,
            "high": high,
            "seeds": len(rows),
            "num_real": rows[0].num_real,
            "num_synthetic": rows[0].num_synthetic,
            "networks": rows[0].networks,
            "seconds": round(sum(row.seconds for row in rows), 3),
            "difference": difference.difference if difference else 0.0,
            "difference_low": difference.low if difference else 0.0,
            "difference_high": difference.high if difference else 0.0,
            "best_real": arm == report.best_real,
        }
    return summary


def make_report(order: Order, out: Path) -> Path:
    """Run folder -> report/index.html, from what stands on disk."""
    from synthgen.report import build

    order.progress.start("report", 1)
    path = out / "report" / "index.html"
    storage.write_text(path, build(out))
    order.progress.finish("report", str(path))
    return path


def _track(order: Order, out: Path, about: dict[str, Any]) -> None:
    """The run on the W&B dashboard: losses, grids, gate and gain as tables, shards as an artifact."""
    config = order.config
    if config.tracking == "off":
        return
    settings = config.model_dump(mode="json", exclude={"data": {"path"}})
    with tracking.open_run(config.tracking, config.project, config.name, out, settings) as run_log:
        for name in about["gate"]:
            trained, judged = out / "train" / name / "train.json", out / "gate" / name
            if trained.is_file():
                run_log.losses(name, storage.read_json(trained)["losses"]["loss"])
            if (out / "candidates" / name / CANDIDATES).is_file():
                run_log.image(f"samples/{name}", _grid(raw.read(out / "candidates" / name / CANDIDATES)), name)
            if (judged / "gate.json").is_file():
                metrics = load_gate(judged).metrics
                columns = ["metric", "value", "real_against_real", "excess", "low", "high", "z", "limit", "verdict"]
                rows = [[m.name, m.value, m.reference, m.excess, m.low, m.high, m.z, m.limit, m.verdict] for m in metrics]
                run_log.table(f"gate/{name}", columns, rows)
        if about["arms"]:
            columns = ["arm", *next(iter(about["arms"].values()))]
            run_log.table("gain/arms", columns, [[arm, *values.values()] for arm, values in about["arms"].items()])
        if about["shards"]:
            run_log.artifact(f"{config.name}-shards", "dataset", out / "shards")
        seconds = {f"seconds/{stage}": s for stage, s in about["seconds"].items()}
        run_log.summary({"verdict": about["verdict"], "best_generator": about["best_generator"], **seconds})


def _grid(batch: Batch, columns: int = 10) -> np.ndarray:
    """The first samples of each class, a class a row, as one image (h, w, c)."""
    rows = []
    for label in np.unique(batch.labels)[:20]:
        images = batch.images[batch.labels == label][:columns]
        padded = np.concatenate([images, np.zeros((columns - len(images), *images.shape[1:]), np.uint8)])
        rows.append(np.concatenate(list(padded), axis=2))
    return np.concatenate(rows, axis=1).transpose(1, 2, 0)


def _seconds(out: Path) -> dict[str, float]:
    """Wall seconds of every finished stage of a run."""
    folders = sorted(path.parent for path in out.rglob(storage.TIMING))
    return {folder.relative_to(out).as_posix(): storage.seconds(folder) for folder in folders}


def _device_name(device: str) -> str:
    return torch.cuda.get_device_name() if device == "cuda" else f"cpu {platform.machine()}"


def _libraries() -> dict[str, str]:
    return {name: version(name) for name in ("torch", "numpy", "diffusers", "pytorch-lightning", "safetensors")}
