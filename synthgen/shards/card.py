"""The card of an export (README.md): what the samples are, whether they help, and what `datasets.load_dataset` needs."""

from __future__ import annotations

from typing import Any, TypedDict

import yaml

from synthgen.types import ShardManifest

FILES = {
    "parquet": "parquet/*.parquet",
    "webdataset": "webdataset/*.tar",
    "folder": "folder/**",
}
"""Format -> its files, for those that `datasets` reads; the first that an export has is what `load_dataset` gives."""
SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"), (10_000_000, "1M<n<10M"))

WORDS = {
    "use": "**Use.** Training on real and synthetic images together beat the best that the real images alone could do.",
    "reject": "**Reject.** Real images alone do as well, or the samples didn't pass the gate. Don't train on these.",
    "insufficient evidence": "**Insufficient evidence.** Whether these samples help can't be told from chance.",
    "": "**Not measured.** Nobody has measured yet whether training on these samples helps.",
}


class Metric(TypedDict):
    """A metric of the gate."""

    name: str
    value: float | None
    real: float | None
    excess: float | None
    low: float | None
    high: float | None
    verdict: str


class Gate(TypedDict):
    """What the gate said of the set."""

    verdict: str
    reasons: list[str]
    notices: list[str]
    candidates: int
    kept: int
    dropped: dict[str, int]
    copy_rate: float
    real_dropped: float
    extractor: str
    metrics: list[Metric]


class Pair(TypedDict):
    """An arm against another."""

    arm: str
    baseline: str
    difference: float
    low: float
    high: float
    seeds: int


class Worth(TypedDict):
    """How many real images an arm is worth."""

    num_real: int
    equivalent: float
    low: float | None
    high: float | None


class Gain(TypedDict):
    """What the gain study found."""

    best_real: str
    pairs: list[Pair]
    exchange: Worth | None
    networks: int


class Evidence(TypedDict, total=False):
    """`ShardManifest.evidence`, as far as the card tells it."""

    gate: Gate | None
    gain: Gain | None
    reasons: list[str]


def text(whole: ShardManifest) -> str:
    """The card as Markdown with a YAML head; nothing in it depends on when or how fast it was made."""
    evidence = whole.evidence
    parts = [
        f"---\n{yaml.safe_dump(_head(whole), sort_keys=False, allow_unicode=True)}---",
        f"# Synthetic images for {_plain(whole.spec.name)}",
        f"{WORDS[whole.verdict]}",
        *_list(evidence.get("reasons", [])),
        _what(whole),
        *_gain(evidence.get("gain")),
        *_gate(evidence.get("gate"), "reasons" in evidence),
        _limits(whole),
        _cost(whole),
        _again(whole),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _head(whole: ShardManifest) -> dict[str, Any]:
    formats = {shard.format for shard in whole.shards}
    read = [name for name in FILES if name in formats]
    size = next((words for most, words in SIZES if whole.num_samples < most), "n>10M")
    head: dict[str, Any] = {
        "pretty_name": _line(f"Synthetic images for {whole.spec.name}"),
        "license": _line(whole.licence.lower()) or "unknown",
        "task_categories": ["image-classification"],
        "size_categories": [size],
        "tags": ["synthetic", "image", "synthgen"],
    }
    if read:
        head["configs"] = [
            {"config_name": name, "data_files": [{"split": "train", "path": FILES[name]}], **({"default": True} if not i else {})}
            for i, name in enumerate(read)
        ]
    return head


def _what(whole: ShardManifest) -> str:
    spec, made = whole.spec, whole.provenance
    c, h, w = spec.image_shape
    counts = "\n".join(f"| {_plain(name)} | {count:,} |" for name, count in whole.class_counts.items())
    by = (
        f"checkpoint {_code(made.checkpoint)}, {_plain(made.sampler)}, seed {made.seed}"
        if made.checkpoint
        else _plain(made.sampler)
    )
    dropped = f" {len(whole.dropped):,} samples of the first export were withdrawn." if whole.dropped else ""
    return (
        f"## What is in it\n\n{whole.num_samples:,} synthetic images, {h} x {w}, {'grey' if c == 1 else 'RGB'}, "
        f"{len(whole.class_counts)} classes.{dropped} Made by {by}. No real image is in it.\n\n"
        f"| class | images |\n|---|---|\n{counts}\n\n"
        "Each sample has its key, label, the real-only judges' soft label, generator, checkpoint, seed and index, sampler, the "
        "gate's figures, and the key of the nearest real image that the generator saw with the distance to it. "
        f"Licence: {_plain(whole.licence) or 'not stated; that of the real images binds'}."
    )


def _gain(gain: dict[str, Any] | None) -> list[str]:
    if not gain:
        return []
    rows = "\n".join(
        f"| {_word(p['arm'])} | {_word(p['baseline'])} | {p['difference']:+.2f} "
        f"| {p['low']:+.2f} to {p['high']:+.2f} | {p['seeds']} |"
        for p in gain["pairs"]
    )
    worth = ""
    if gain["exchange"]:
        e = gain["exchange"]
        interval = f" (95% interval {e['low']:.0f} to {e['high']:.0f})" if None not in (e["low"], e["high"]) else ""
        worth = f"\n\n{e['num_real']:,} real images with these do as well as {e['equivalent']:.0f}{interval} real ones."
    return [
        "## What they add\n\nDifference in test accuracy, in points, on a locked test set; paired by seed and image.\n\n"
        "| with these | against | points | 95% interval | seeds |\n|---|---|---|---|---|\n"
        f"{rows}\n\nStrongest real-only way: {_word(gain['best_real'])}.{worth}"
    ]


def _gate(gate: dict[str, Any] | None, said: bool) -> list[str]:
    """`said`: the gate's reasons stand on top already."""
    if not gate:
        return []
    rows = "\n".join(
        f"| {_plain(m['name'])} | {_figure(m['value'])} | {_figure(m['real'])} | {_excess(m)} | {_word(m['verdict'])} |"
        for m in gate["metrics"]
    )
    dropped = ", ".join(f"{_plain(reason)} {count:,}" for reason, count in gate["dropped"].items()) or "none"
    return [
        f"## What the gate says\n\n**{_word(gate['verdict'].capitalize())}.** {gate['kept']:,} of {gate['candidates']:,} "
        f"candidates kept (dropped: {dropped}); {gate['copy_rate']:.2%} were copies of real images, and of held-out real "
        f"images the same thresholds drop {gate['real_dropped']:.1%}.\n\n"
        "| metric | these | real against real | excess (95% interval) | |\n|---|---|---|---|---|\n"
        f"{rows}\n\nFeatures: {_code(_plain(gate['extractor']))}. Figures of another extractor can't be compared with these.",
        *_list([*([] if said else gate["reasons"]), *gate["notices"]]),
    ]


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def _excess(metric: dict[str, Any]) -> str:
    excess, low, high = metric["excess"], metric["low"], metric["high"]
    interval = f" ({low:+.3g} to {high:+.3g})" if None not in (low, high) else ""
    return "" if excess is None else f"{excess:+.3g}{interval}"


def _limits(whole: ShardManifest) -> str:
    return (
        "## Known limits\n\n- They show what the generator learnt from the real images named here; they hold no information "
        "that those don't.\n- Whether they help was measured with one family of classifiers on one test set of the same source; "
        "for another use measure again.\n- The gate drops what it can tell from real images; a soft defect may pass.\n"
        "- Metrics, models and verdicts trained or tested on synthetic images alone say nothing about real ones."
    )


def _cost(whole: ShardManifest) -> str:
    gate, gain = whole.evidence.get("gate"), whole.evidence.get("gain")
    counts = [
        f"{gate['candidates']:,} candidates drawn" if gate else "",
        f"{gain['networks']:,} classifiers trained" if gain else "",
    ]
    said = ", ".join(part for part in counts if part)
    return f"## Cost\n\n{said[0].upper()}{said[1:]}. Seconds stand in the run's report." if said else ""


def _again(whole: ShardManifest) -> str:
    made = whole.provenance
    if not whole.plan:
        return "## Check\n\n`synthgen verify .` checks every byte, `synthgen drop . KEY --out NEW` leaves samples out."
    inputs = "\n".join(f"- {_word(name)}: {_code(digest)}" for name, digest in sorted(made.parents.items()))
    return (
        "## Check and make again\n\n`synthgen verify .` checks every byte. `synthgen replay KEY . --checkpoint FILE` makes a "
        "sample again from the checkpoint and compares. `synthgen drop . KEY --out NEW` leaves samples out.\n\n"
        f"synthgen {_word(made.code)}, {_plain(made.device)}, "
        f"{_word(', '.join(f'{name} {number}' for name, number in sorted(made.libraries.items())))}. sha256 of what it was made "
        f"from:\n\n{inputs}"
    )


def _list(lines: list[str]) -> list[str]:
    return ["\n".join(f"- {_plain(line)}" for line in lines)] if lines else []


def _plain(words: str) -> str:
    """Text in which nothing is markup: names of classes and files come from anywhere."""
    return _word(words).replace("_", "\\_")


def _word(words: str) -> str:
    """As `_plain`, for what is ours if nobody has changed the manifest: an underscore within a word is none either."""
    line = _line(words)
    for char in "\\`*[]<>|#":
        line = line.replace(char, f"\\{char}")
    return line


def _code(words: str) -> str:
    """Text as code, in which a backslash is one."""
    return f"`{_line(words).replace('`', chr(39))}`"


def _line(words: str) -> str:
    return "".join(char if char.isprintable() else " " for char in words)
