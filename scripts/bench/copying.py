"""Where copying begins: the share of copies among samples against training time, and the step that the looks keep.

    .venv/bin/python scripts/bench/copying.py --data digits --train 50 200 1000 --steps 6000 [--json FILE]
    .venv/bin/python scripts/bench/copying.py --data cifar10 --train 500 1000 5000 --steps 60000 size=base device=cuda
    .venv/bin/python scripts/bench/copying.py --quick                                       (a check, no result)

The diffusion is trained far beyond its recipe, with looks that don't stop it; at each look the table has the held-out loss,
FID against the reference, recall, and the share of samples that the copy search takes for copies of training images (real
images: 1%). "Kept" is the step whose weights training would have left with, "stop" the look at which it would have ended.
"""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from machine import processor  # beside this script

from synthgen import jobs, models, training
from synthgen.choice import Choice, Finding
from synthgen.config.load import load
from synthgen.jobs.looks import Looker, look_steps
from synthgen.types import Silent

DATA = {
    "digits": ("digits", ["split.val=100", "split.reference=400", "split.test=0.1"]),
    "cifar10": ("cifar10-2k", ["data.path=cifar10", "split.val=1000", "split.reference=4000"]),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", choices=list(DATA), default="digits")
    parser.add_argument("--train", type=int, nargs="+", default=[50, 200, 1000])
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--looks", type=int, default=12)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--quick", action="store_true", help="60 steps on 50 digits: a check, no result")
    parser.add_argument("settings", nargs="*", metavar="KEY=VALUE")
    asked = parser.parse_args()
    if asked.quick:
        asked.data, asked.train, asked.steps, asked.looks = "digits", [50], 60, 3
        asked.settings += ["features.steps=40", "features.defect_steps=0", "looks.num=100"]
    torch.set_num_threads(1)
    machine = f"{processor()}, Python {platform.python_version()}, "
    machine += f"torch {version('torch')}, synthgen {version('synthgen')}"
    print(machine, flush=True)
    curves = []
    for num in asked.train:
        with tempfile.TemporaryDirectory() as scratch:
            curves.append(curve(asked, num, Path(scratch)))
        show(curves[-1])
        if asked.json:
            asked.json.write_text(json.dumps({"machine": machine, "curves": curves}, indent=2) + "\n")


def curve(asked: argparse.Namespace, num: int, scratch: Path) -> dict[str, Any]:
    recipe, settings = DATA[asked.data]
    steps = f"generators.diffusion.steps={asked.steps}"
    config = load(recipe, [*settings, f"split.train={num}", f"split.seed={asked.seed}", steps, *asked.settings])
    order = jobs.Order(config)
    jobs.audit(order, scratch)
    split = jobs.Split.open(scratch)
    jobs.features(order, split, scratch / "features")
    looker = Looker(order, split, scratch / "features")
    choice, found = Choice(config.looks.tolerance), []

    def look(module: Any, step: int) -> Finding:
        finding = looker(module, step)
        found.append(finding)
        if not choice.stopped:  # what would have happened
            choice.consider(finding, dict)
        return Finding(step, finding.values, finding.score, finding.losses)  # without the reason to stop

    own = config.generators.diffusion
    generator = models.build(own, split.spec, config.augment, config.seed)
    done = training.fit(
        generator,
        [(split.role("train"), own.batch_size)],
        steps=asked.steps,
        seed=config.seed,
        task="diffusion",
        progress=Silent(),
        device=order.device,
        precision=config.precision,
        looks=training.Looks(look, look_steps(asked.steps, asked.looks)),
    )
    return {
        "data": asked.data,
        "train": num,
        "seconds": round(done.seconds, 1),
        "looks": [{"step": f.step, **f.values} for f in found],
        "kept": None if choice.kept is None else choice.findings[choice.kept].step,
        "stopped": choice.findings[-1].step if choice.stopped else None,
        "reason": choice.stopped,
    }


def show(curve: dict[str, Any]) -> None:
    print(f"\n{curve['data']}, {curve['train']} train images, {curve['seconds']:.0f} s with looks\n")
    print("| step | held-out loss | FID | recall | copies | |\n|---|---|---|---|---|---|")
    for look in curve["looks"]:
        said = "kept" if look["step"] == curve["kept"] else "stop" if look["step"] == curve["stopped"] else ""
        figures = (
            f"{look.get('held_out_loss', float('nan')):.3f} | {look['fid']:.2f} | {look['recall']:.2f} | {look['copy_share']:.1%}"
        )
        print(f"| {look['step']} | {figures} | {said} |")
    print(f"\n{curve['reason'] or 'no reason to stop'}", flush=True)


if __name__ == "__main__":
    main()
