"""The gain study as people see it: report, final table, list of arms, verdict.json. Other tests take `gain_report` from here."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from synthgen import storage
from synthgen.errors import DataError
from synthgen.gain.arms import ARMS, QUICK, arm_of, recipe_of
from synthgen.gain.data import StudyData, why_not
from synthgen.jobs.runs import summarise_arms
from synthgen.report import charts, gain, page
from synthgen.report.evidence import collect
from synthgen.screen import arm_needs, arms_table
from synthgen.types import (
    UNLABELLED,
    ArmAccuracy,
    Batch,
    ClassGain,
    Control,
    CurvePoint,
    Exchange,
    GainReport,
    GainRow,
    Interval,
    LearningCurve,
    Scores,
)

ARMS_RUN = (
    "svm_pixels", "real", "real_aug", "real_mixup", "pseudo_labels", "real_committee", "real_trainval", "oracle",
    "synthetic_gated", "synthetic_only", "synthetic_committee", "synthetic_trainval",
)  # fmt: skip
SKIPPED = {"fixmatch": "needs unlabelled images, and there are none", "real_searched": "needs Optuna"}
EXCHANGE = (
    Exchange(
        "synthetic_gated", 50, 82.4, 55.0, None, 1.648, False, "as accurate as about 82 real images alone; to more than 400"
    ),
    Exchange("synthetic_only", 50, None, None, 20.0, None, False, "its accuracy of 60.00 lies below that of real images at 12"),
)


def gain_report(arms: tuple[str, ...] = ARMS_RUN, groups: bool = True, seeds: int = 3) -> GainReport:
    """A small study with every part in it; figures differ from arm to arm and hang together as in a real one."""
    rows, accuracies = [], {}
    for place, arm in enumerate(arms):
        about = arm_of(arm)
        base = 0.8 + 0.03 * about.synthetic + 0.002 * place
        accuracies[arm] = [base + 0.004 * seed for seed in range(seeds)]
        for seed, accuracy in enumerate(accuracies[arm]):
            group = accuracy - 0.2 if groups else None
            test = Scores(
                accuracy, 0.6, accuracy - 0.01, 0.05, accuracy - 0.15, group, (accuracy - 0.15, accuracy, accuracy + 0.15)
            )
            val = None if about.role == "trainval" else replace(test, accuracy=accuracy - 0.005, worst_group=None)
            networks = 3 if "committee" in arm else 1
            numbers = (100 if about.role == "trainval" else 50, 400 * about.synthetic)
            steps = 0 if recipe_of(about.recipe or "real_aug").kind != "network" else 250
            rows.append(GainRow(arm, seed, *numbers, steps, networks, val, test, accuracy - 0.001, 2.5 * networks, 0.5))

    def interval(arm: str, base: str) -> Interval:
        each = 100 * (np.array(accuracies[arm]) - accuracies[base])
        mean = float(each.mean())
        return Interval(arm, base, mean, mean - 1.5, mean + 1.5, seeds, 9, mean - 1.25, mean + 1.125, 0.04, 0.0625, 0.75)

    decisive = (("synthetic_gated", "real_mixup"), ("synthetic_gated", "real_aug"), ("synthetic_trainval", "real_trainval"))
    pairs = dict.fromkeys([*((arm, "real_mixup") for arm in arms if arm != "real_mixup"), *decisive])
    committees = {"real_committee": "real_mixup", "synthetic_committee": "synthetic_gated"}
    found = committees | {"real_trainval": "real_mixup@all", "synthetic_trainval": "synthetic_gated@all"}
    points = [(12, "train"), (25, "train"), (50, "train"), (100, "train and val"), (400, "hidden labels")]
    curve = LearningCurve(
        "real_aug",
        tuple(
            CurvePoint(n, tuple(1 - n**-0.5 + 0.01 * seed for seed in range(seeds)), source, 0.98 - n**-0.5, 1.03 - n**-0.5)
            for n, source in points
        ),
        0.0, 1.0, 0.5, 0.3, 100, (5.5, 4.25, 6.75), EXCHANGE, "intervals over seeds and test images (3 seeds a size)",
    )  # fmt: skip
    classes = [
        ClassGain("cat", "class", 40, 0.8, 0.85, 5.0, 2.0, 8.0, False),
        ClassGain("dog", "class", 30, 0.9, 0.8, -10, -15, -5, True),
    ]
    if groups:
        classes.append(ClassGain("patient 7", "group", 12, 0.7, 0.7, 0.0, -9.0, 9.0, False))
    return GainReport(
        verdict="insufficient evidence",
        reasons=("synthetic_gated against real_mixup: +3.20 points", "the class 'dog' loses 10.00 points"),
        advice=("of 50 images to label next, margin would have found the best",),
        best_real="real_mixup",
        best_synthetic="synthetic_committee",
        recipes={arm: found.get(arm, arm_of(arm).recipe or "real_aug") for arm in arms},
        tuned={"real_mixup": 0.3, "real_aug": 2.0, "synthetic_gated": 0.25, "real_mixup@all": 0.3},
        rows=tuple(rows),
        accuracies=tuple(
            ArmAccuracy(arm, float(np.mean(each)), min(each) - 0.02, max(each) + 0.02) for arm, each in accuracies.items()
        ),
        intervals=tuple(interval(arm, base) for arm, base in pairs),
        watts=10.0,
        skipped=dict(SKIPPED),
        decisive=decisive,
        curve=curve,
        controls=(
            Control("Do both sides train as long?", "every network was trained for 250 steps", False),
            Control("Could it be luck of seeds or test images?", "p = 0.040", True),
        ),
        classes=tuple(classes),
    )  # fmt: skip


def write_run(run: Path, report: GainReport, **changes: object) -> Path:
    """A run folder of nothing but the study, its verdict and a few times."""
    seconds = {"features": 4.0, "train/vae": 40.0, "candidates/vae": 10.0, "gate/vae": 6.0, "gain": 90.0}
    about = {"schema": "synthgen.verdict/1", "verdict": report.verdict, "reasons": list(report.reasons), "best_generator": "vae"}
    storage.write_json(run / "gain" / "gain.json", report.to_json())
    storage.write_json(run / "verdict.json", about | {"arms": summarise_arms(report), "seconds": seconds} | changes)
    return run


@pytest.fixture
def run(tmp_path) -> Path:
    return write_run(tmp_path / "run", gain_report())


def view(run: Path) -> dict:
    return gain.gain_view(collect(run))


def section(run: Path) -> str:
    """The gain section of the page, without its tags."""
    from tests.contract.test_report import Page

    text = Page(page.build(run)).text
    return " ".join(text[text.index("What training on these samples gains") : text.rindex("Nothing was exported")].split())


# The record


def test_a_study_survives_its_json():
    report = gain_report()
    assert GainReport.from_json(json.loads(json.dumps(report.to_json()))) == report
    with pytest.raises(DataError, match=r"synthgen\.gain/1"):
        GainReport.from_json(report.to_json() | {"schema": "synthgen.gain/1"})


def test_the_verdicts_arms_are_means_over_seeds_with_intervals_over_images_too():
    arms = summarise_arms(gain_report())
    assert list(arms) == list(ARMS_RUN)
    gated = arms["synthetic_gated"]
    assert [gated[key] for key in ("test_accuracy", "low", "high")] == pytest.approx([0.85, 0.826, 0.874])
    expected = {"macro_f1": 0.84, "worst_class": 0.7, "worst_group": 0.65, "ece": 0.05, "val_accuracy": 0.845, "clean": 0.849}
    assert {key: gated[key] for key in expected} == pytest.approx(expected)
    assert (gated["seconds"], gated["device_seconds"], gated["seeds"]) == (7.5, 1.5, 3)
    assert (gated["dial"], gated["dial_value"], gated["p_holm"], gated["effect_size"]) == ("share", 0.25, 0.0625, 0.75)
    assert (gated["difference"], gated["boot_low"]) == pytest.approx((4.0, 2.75))
    assert (arms["real_mixup"]["difference"], arms["real_mixup"]["p_holm"], arms["real_mixup"]["best_real"]) == (0.0, None, True)
    assert (arms["real_trainval"]["val_accuracy"], arms["real_trainval"]["num_real"]) == (None, 100)
    assert arms["svm_pixels"]["dial"] == ""
    assert [arm for arm in arms if arms[arm]["simulation"]] == ["oracle"]
    assert summarise_arms(gain_report(groups=False))["real"]["worst_group"] is None
    json.dumps(arms)


# The page


def test_the_section_says_everything_in_its_order(run):
    text = section(run)
    said = [
        "the class 'dog' loses 10.00 points",
        "margin would have found the best",
        "real_mixup (real, augmentation and mixup), the strongest real-only arm by val",
        "The comparisons that decided", "against real_aug",
        "All arms, the most accurate first", "95% interval over seeds and test images (whole groups of them",
        "synthetic_trainval", "synthetic_gated@all",
        "BCa +3.15 to +5.53", "0.062", "50 / 400", "share 0.25", "3 networks",
        "How many real images the synthetic ones are worth", "as accurate as about 82 real images alone; to more than 400",
        "refused", "up to 20", "95% interval over seeds and test images",
        "simulation with hidden labels", "intervals over seeds and test images (3 seeds a size)",
        "A sceptic\u2019s questions", "1 answer speaks against the gain", "Alarm, this speaks against the gain: p = 0.040",
        "Who gains and who loses", "Harmed: class dog.", "group patient 7",
        "Arms that were not run", "fixmatch: needs unlabelled images",
        "What the gain costs", "the generator 40 s", "1 min 30 s",
    ]  # fmt: skip
    at = 0
    for words in said:
        assert words in text[at:], words
        at += text[at:].index(words)


def test_tables_and_marks_can_be_heard(run):
    from tests.contract.test_report import Page

    parsed = Page(page.build(run))
    tables = sum(tag == "table" for tag, _ in parsed.elements)
    assert tables == sum(tag == "caption" for tag, _ in parsed.elements) >= 6
    assert all(attributes.get("scope") for tag, attributes in parsed.elements if tag == "th")
    regions = [attributes for _, attributes in parsed.elements if attributes.get("role") == "region"]
    assert len({attributes["aria-label"] for attributes in regions}) == len(regions) >= 6
    assert "✕" not in parsed.text  # marks are words, the sign before them is the style sheet's


def test_a_row_holds_the_figures_of_its_arm(run):
    rows = {row["name"]: row for row in view(run)["arms"]}
    assert next(iter(rows)) == "synthetic_trainval"
    gated = rows["synthetic_gated"]
    assert gated["seconds"] == pytest.approx(2.5)
    assert gated["whole_s"] == pytest.approx(62.5)  # the generator's minute counts for what needs it
    assert gated["per_minute"] == pytest.approx(4.0 / 62.5 * 60)
    assert rows["real_committee"]["whole_s"] == pytest.approx(7.5)
    assert rows["real"]["per_minute"] is None  # it gains nothing
    assert rows["oracle"]["per_minute"] is None  # its price is labels
    assert [name for name, row in rows.items() if row["decisive"]] == ["synthetic_gated"]


def test_the_forest_has_every_comparison_and_marks_those_that_decided(run):
    traces = [trace for trace in view(run)["forest"]["figure"]["data"] if trace.get("error_x")]
    marks = {trace["marker"]["symbol"]: set(trace["y"]) for trace in traces}
    trials = "synthetic_trainval \u2212 real_trainval"
    assert marks["diamond"] == {"synthetic_gated", "synthetic_gated \u2212 real_aug", trials}
    assert marks["square"] == {"synthetic_only", "synthetic_committee", "synthetic_trainval"}
    assert sum(map(len, marks.values())) == len(ARMS_RUN) - 1 + 2


def test_all_arms_have_room_in_the_forest(tmp_path):
    figure = view(write_run(tmp_path / "all", gain_report(tuple(ARMS))))["forest"]["figure"]
    assert len(figure["layout"]["annotations"]) == len(ARMS) - 1 + 2
    assert figure["layout"]["height"] > 30 * len(ARMS)


def trace_of(figure: dict, mode: str, symbol: str = "", dash: str = "") -> list[dict]:
    return [
        trace
        for trace in figure["data"]
        if trace["mode"] == mode
        and (not symbol or trace["marker"]["symbol"] == symbol)
        and (not dash or trace["line"].get("dash") == dash)
    ]


def values(axis) -> list[float]:
    """Of a trace, whether or not plotly packed them."""
    if isinstance(axis, dict):
        import base64

        return np.frombuffer(base64.b64decode(axis["bdata"]), axis["dtype"]).tolist()
    return list(axis)


def test_the_learning_curve_marks_what_the_best_arm_is_worth(run):
    curve = view(run)["curve"]
    figure = curve["figure"]
    assert curve["best"] == "synthetic_gated"
    assert [values(trace["x"]) for trace in trace_of(figure, "markers", "circle")] == [[12, 25, 50]]
    assert [values(trace["x"]) for trace in trace_of(figure, "markers", "square")] == [[100]]
    assert [values(trace["x"]) for trace in trace_of(figure, "markers", "diamond-open")] == [[400]]
    (point,) = trace_of(figure, "markers", "square")
    assert values(point["y"]) == pytest.approx([91.0])
    assert values(point["error_y"]["array"]) == pytest.approx([2.0])
    assert values(point["error_y"]["arrayminus"]) == pytest.approx([3.0])
    right = 10 ** figure["layout"]["xaxis"]["range"][1]
    (bar,) = [trace for trace in figure["data"] if trace.get("line", {}).get("width") == 7]
    assert values(bar["x"]) == pytest.approx([55.0, right])  # its end isn't known: to the edge
    (worth,) = [trace for trace in figure["data"] if values(trace["x"]) == [82.4, 82.4] and trace["mode"] == "markers"]
    assert values(worth["y"])[0] == pytest.approx(85.0)
    assert len(trace_of(figure, "lines", dash="dot")) == 2  # the other arm, and the drop to the axis


def test_the_fit_goes_on_dashed_where_extrapolation_was_asked_for(tmp_path):
    report = gain_report()
    far = replace(EXCHANGE[0], equivalent=900.0, low=500.0, high=2000.0, extrapolated=True)
    report = replace(report, curve=replace(report.curve, exchange=(far,)))
    run = write_run(tmp_path / "far", report)
    fitted = gain.fitted(report.curve, [900.0, 500.0, 2000.0])
    assert (fitted[0][0], fitted[-1][0]) == pytest.approx((12, 2000))
    assert all(accuracy == pytest.approx(100 - 100 * n**-0.5) for n, accuracy in fitted)
    lines = [trace for trace in view(run)["curve"]["figure"]["data"] if trace.get("hoverinfo") == "skip"]
    assert [max(values(trace["x"])) for trace in lines if len(values(trace["x"])) > 2] == pytest.approx([400, 2000])
    assert "extrapolated" in section(run)


def test_a_study_without_curve_classes_or_groups_is_a_page(tmp_path):
    report = replace(gain_report(groups=False), curve=None, controls=(), classes=(), skipped={}, advice=(), decisive=())
    text = section(write_run(tmp_path / "bare", report))
    assert "No learning curve was measured" in text
    assert "Worst group" not in text
    unfitted = replace(gain_report().curve, offset=None, scale=None, exponent=None, fit_error=None, next_gain=None, exchange=())
    text = section(write_run(tmp_path / "unfitted", replace(report, curve=unfitted)))
    assert "The fit:" not in text
    assert "72.13%" in text


def test_the_name_of_an_arm_is_never_markup(tmp_path):
    from tests.contract.test_report import ALERT, Page

    hostile = f"generator_{ALERT}"
    report = gain_report((*ARMS_RUN, hostile))
    decisive = ((hostile, "real_mixup"), *report.decisive)
    curve = replace(report.curve, recipe=ALERT, exchange=(replace(EXCHANGE[0], arm=hostile),))
    report = replace(report, decisive=decisive, skipped={ALERT: ALERT}, best_synthetic=hostile, curve=curve)
    parsed = Page(page.build(write_run(tmp_path / "hostile", report)))
    assert parsed.text.count(ALERT) >= 8
    assert sum(attributes.get("type") != "application/json" for attributes, _ in parsed.scripts) == 2


def test_of_many_classes_the_harmed_ones_are_shown(tmp_path):
    harmed = ClassGain("the last", "class", 9, 0.5, 0.49, -1.0, -1.5, -0.5, True)
    many = [ClassGain(f"c{i}", "class", 9, 0.5, 0.5 + i / 1000, i / 10, 0.0, 20.0, False) for i in range(100)]
    shown = view(write_run(tmp_path / "many", replace(gain_report(), classes=(*many, harmed))))["classes"]
    names = [c.name for c, _ in shown["rows"]]
    assert (len(names), names[-1], names[0]) == (gain.CLASSES_SHOWN, "the last", "c41")
    assert shown["total"] == 101


def test_a_bar_ends_where_its_figures_are():
    bar = gain._bar(ClassGain("c", "class", 9, 0.5, 0.4, -10.0, -20.0, 5.0, False), 20.0)
    assert bar == {"low": 0.0, "width": 62.5, "mean": 25.0, "from": 25.0, "long": 25.0}


def test_crowded_sizes_lose_their_labels_not_their_points():
    assert charts._apart([50, 100, 105, 400], 10.0) == [50, 105, 400]


# The screen


def test_the_final_table_fits_and_names_the_strongest(capsys):
    console = Console(width=112, highlight=False)
    arms = summarise_arms(gain_report(tuple(ARMS)))
    console.print(arms_table(arms))
    lines = capsys.readouterr().out.splitlines()
    assert "95% intervals over seeds and test images" in " ".join(lines)
    assert sum(" to " in line for line in lines) == len(ARMS)  # no row wraps
    (strongest,) = [line for line in lines if "strongest on val" in line]
    assert "real_mixup" in strongest
    assert any("synthetic_gated" in line and "0.062" in line for line in lines)


def test_arms_are_listed_without_torch(tmp_path):
    code = "import sys; sys.argv = ['synthgen', 'arms', *sys.argv[1:]]\nfrom synthgen import cli\ncli._main()\n"
    code += "assert not {'torch', 'numpy', 'plotly', 'wandb'} & set(sys.modules), sorted(sys.modules)"

    def listed(*options: str) -> str:
        done = subprocess.run([sys.executable, "-c", code, *options], capture_output=True, text=True, timeout=60, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        return done.stdout

    rows = {row["arm"]: row for row in json.loads(listed("--json"))}
    assert list(rows) == list(ARMS)
    assert {name for name, row in rows.items() if row["study"] == "quick"} == set(QUICK)
    gated = {"arm": "synthetic_gated", "meaning": "real, augmentation, gated synthetic", "side": "synthetic", "needs": ""}
    assert rows["synthetic_gated"] == gated | {"study": "quick"}
    text = listed()
    assert all(f" {name} " in text for name in ARMS)
    assert "gain.arms=[real_aug,synthetic_gated]" in text


def test_what_an_arm_needs_is_what_the_study_asks_for(toy, toy_spec):
    def batch(prefix: str, labelled: bool = True) -> Batch:
        labels = toy.labels if labelled else np.full(len(toy), UNLABELLED)
        return Batch(toy.images, labels, tuple(f"{prefix}-{i}" for i in range(len(toy))))

    gated = batch("gated")
    data = StudyData(
        toy_spec, batch("train"), batch("val"), batch("reference"), batch("pool").take(np.zeros(0, int)), gated, gated, gated
    )
    refused = {name for name in ARMS if why_not(name, data)}
    needing = {name for name in ARMS if arm_needs(name)}
    assert needing - refused == {"synthetic_1x", "real_searched"}  # there are as many samples; Optuna is asked for when it starts
    assert refused <= needing
