"""What the page says of the real images: from `audit/report.json`, of whatever version."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from synthgen.errors import SynthgenError
from synthgen.report.evidence import Evidence
from synthgen.report.samples import Tile
from synthgen.report.styles import Styles
from synthgen.report.wording import num, pct, words

MAX_ROWS = 50
DOUBTFUL_SHOWN = 12

FIGURES = (
    ("images", "num_images"),
    ("without a label", "num_unlabelled"),
    ("in no split", "num_unused"),
    ("files left out", "num_quarantined"),
    ("groups with the same pixels", "exact_duplicates.num_groups"),
    ("groups that are nearly the same", "near_duplicates.num_groups"),
    ("of them across splits", "near_duplicates.num_crossing"),
    ("of them with different labels", "near_duplicates.num_conflicting"),
    ("left out, tied to test images", "left_out.total"),
    ("of one colour", "constant.total"),
    ("labels judged", "label_issues.num_judged"),
    ("labels that look wrong", "label_issues.total"),
)
"""What is said, and where it stands in the report; what a report doesn't have is left out."""


def audit_view(evidence: Evidence, styles: Styles, missing: list[str]) -> dict[str, Any] | None:
    """Everything the page shows of the audit; pixels that can't be read are added to `missing`."""
    report = evidence.audit
    if report is None:
        return None
    splits = {role: counts for role, counts in _mapping(report, "split_counts").items() if isinstance(counts, dict)}
    classes = list(dict.fromkeys([*_mapping(report, "class_counts"), *(name for c in splits.values() for name in c)]))
    columns = {"all": _mapping(report, "class_counts"), **splits}
    judge = _at(report, "label_issues.accuracy")
    return {
        "notes": [str(note) for note in report.get("notes") or []],
        "figures": [(what, num(_at(report, where))) for what, where in FIGURES if _at(report, where) is not None]
        + ([("accuracy of the label judge", pct(judge))] if judge is not None else []),
        "columns": list(columns),
        "classes": [(name, [num(counts.get(name)) for counts in columns.values()]) for name in classes[:MAX_ROWS]],
        "num_classes": len(classes),
        "tables": [
            (title, [(str(name), num(count)) for name, count in _mapping(report, key).items()][:MAX_ROWS])
            for title, key in (("Original sizes", "sizes"), ("Converted when read", "converted"))
            if _mapping(report, key)
        ],
        "quarantined": [(str(name), str(why)) for name, why in _mapping(report, "quarantined").items()],
        "doubtful": _doubtful(evidence, _at(report, "label_issues.keys") or (), styles, missing),
        "judged": _at(report, "label_issues.note"),
    }


def _doubtful(evidence: Evidence, keys: Sequence[Any], styles: Styles, missing: list[str]) -> dict[str, Any] | None:
    """Training images whose labels look wrong, the most doubtful first."""
    train, names = evidence.train, evidence.spec.class_names if evidence.spec else ()
    rows = [train.at[key] for key in keys if key in train.at][:DOUBTFUL_SHOWN] if train else []
    if train is None or not rows:
        return None
    try:
        sheet, sprite = styles.sheet(train.pixels(rows))
    except SynthgenError as error:
        missing.append(str(error).replace(f"{evidence.folder}/", ""))
        return None
    labels = [int(train.labels[i]) for i in rows]
    said = [names[label] if 0 <= label < len(names) else words(str(label)) for label in labels]
    tiles = [
        Tile(train.keys[i], "real, from train; its label looks wrong", of, f"real {styles.place(sprite, n)}", caption=of)
        for n, (i, of) in enumerate(zip(rows, said, strict=True))
    ]
    return {"sheet": sheet, "tiles": tiles}


def _mapping(report: Mapping[str, Any], key: str) -> dict[str, Any]:
    found = report.get(key)
    return found if isinstance(found, dict) else {}


def _at(report: Mapping[str, Any], where: str) -> Any:
    found: Any = report
    for part in where.split("."):
        found = found.get(part) if isinstance(found, dict) else None
    return found
