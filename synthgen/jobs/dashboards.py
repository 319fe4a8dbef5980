"""Run folder -> the run on a dashboard."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from synthgen import storage, tracking
from synthgen.jobs.gates import load_gate
from synthgen.jobs.order import CANDIDATES, Order
from synthgen.shards import raw
from synthgen.types import Batch, GainReport


def track(order: Order, out: Path, about: dict[str, Any]) -> None:
    """The run on the W&B dashboard: losses, grids, gate and gain as tables, shards as an artifact."""
    config = order.config
    if config.tracking == "off":
        return
    settings = config.model_dump(mode="json", exclude={"data": {"path"}})
    with tracking.open_run(config.tracking, config.project, config.name, out, settings) as run_log:
        for name in about["gate"]:
            trained, judged = out / "train" / name / "train.json", out / "gate" / name
            if trained.is_file():
                about_training = storage.read_json(trained)
                run_log.losses(name, about_training["losses"]["loss"])
                if about_training["looks"]:
                    columns = list(dict.fromkeys(key for look in about_training["looks"] for key in look))
                    looks = [[look.get(key) for key in columns] for look in about_training["looks"]]
                    run_log.table(f"looks/{name}", columns, looks)
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
            run_log.gain(GainReport.from_json(storage.read_json(out / "gain" / "gain.json")))
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
