"""What the figures of a study mean: the verdict, advice, and answers to a sceptic."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from statistics import fmean
from typing import TYPE_CHECKING

from synthgen.gain.arms import SINGLE, arm_of, recipe_of
from synthgen.gain.stats import corrected
from synthgen.types import ClassGain, Control, Interval, Verdict

if TYPE_CHECKING:
    from synthgen.gain.arms import Recipe
    from synthgen.gain.assess import Found


def decide(
    intervals: Sequence[Interval], smallest_gain: float, num_test: int, independent: int | None = None
) -> tuple[Verdict, tuple[str, ...]]:
    """use: every interval lies above 0. reject: that against the strongest real-only arm, or on all labelled images, stays
    below a gain worth having, or that against another arm which may be the strongest stays below 0. Else more evidence is needed.

    All have to hold, so they need no correction for being several (an intersection-union test, Berger 1982).

    Args:
        intervals: the decisive ones, that against the strongest real-only arm first; at least one.
        smallest_gain: in points.
        num_test: test images.
        independent: groups of them (patients, recordings); None where there are none.
    """
    within = f" in {independent} groups" if independent is not None else ""
    first, *others = [i for i in intervals if not i.baseline.endswith("trainval")]
    reasons = [
        f"{i.arm} against {i.baseline}: {i.difference:+.2f} points of test accuracy "
        f"(95% interval {i.low:+.2f} to {i.high:+.2f}, {i.seeds} seeds, {num_test} test images{within})"
        for i in (first, *(i for i in intervals if i.baseline.endswith("trainval")))
    ]
    if others:
        least = min(others, key=lambda i: i.low)
        reasons.append(
            f"val can't tell {len(others)} other real-only arm{'s' * (len(others) > 1)} from {first.baseline}: the least against "
            f"them is {_said(least)}"
        )
    if intervals and all(i.low > 0 for i in intervals):
        return "use", tuple(reasons)
    hopeless = [i for i in intervals if i.high < (0.0 if i in others else max(smallest_gain, 1e-12)) and i.low <= 0]
    if hopeless:
        worst = min(hopeless, key=lambda i: i.high)
        harm = "it harms" if worst.high < 0 else f"it can't bring {smallest_gain} points, the smallest gain worth having"
        return "reject", (*reasons, f"{worst.arm} doesn't beat {worst.baseline}: {harm}")
    for i in sorted((i for i in intervals if i.low <= 0), key=lambda i: i.low)[:2]:
        if i.seeds_needed is None:
            more = f"{num_test} test images{within} are too few to settle a difference of {i.difference:+.2f}, whatever the seeds"
        else:
            wanted = max(i.seeds_needed, i.seeds + 1)
            more = f"a true difference of {i.difference:+.2f} would need about {wanted} seeds, {wanted - i.seeds} more"
        reasons.append(f"{i.arm} against {i.baseline} is open: {more}")
    return "insufficient evidence", tuple(reasons)


AIM_ALONE = 2.0
"""Points of accuracy that samples which stand in for real images may cost."""

NEEDED = {
    "all labelled images": ("real_trainval", "synthetic_trainval"),
    "a committee of real-only networks": ("real_committee", "synthetic_committee"),
}
"""What a gain has to be shown against before anybody is told to use it, and the arms that show it."""


def without(
    decision: Verdict, reasons: tuple[str, ...], found: Found, decisive: Sequence[tuple[str, str]]
) -> tuple[Verdict, tuple[str, ...]]:
    """The verdict where arms weren't trained, or not asked for, that "use" can't do without: then it isn't given.

    Those are the arms on all labelled images, the committees, one real-only network on augmented images, and one that had
    what the generator had: the labels of its pool, and weights from elsewhere if its own were. Nor is it given where the gain
    doesn't hold on the test images that nothing trained on is a near duplicate of.
    """
    study, unknown = found.study, list[str]()
    for what, arms in NEEDED.items():
        missing = [arm for arm in arms if arm not in study.votes]
        unasked = [arm for arm in missing if arm not in study.skipped]
        if unasked and decision == "use":
            unknown.append(f"a gain over {what} isn't known: add {' and '.join(unasked)} to gain.arms")
        lost = [f"{arm}: {study.skipped[arm]}" for arm in missing if arm in study.skipped]
        if lost and (decision == "use" or any(arm in study.lost for arm in missing)):
            unknown.append(f"a gain over {what} isn't known: {'; '.join(lost)}")
    real = [recipe_of(study.recipes[arm]) for arm in study.votes if not arm_of(arm).synthetic and arm_of(arm).role in SINGLE]
    if decision == "use" and not any(recipe.kind == "network" and recipe.policy for recipe in real):
        unknown.append("no real-only network was trained on augmented images; add real_aug to gain.arms")
    if decision == "use":
        unknown += _unlike(found, [recipe for recipe in real if recipe.kind == "network"])
        near = _near_duplicates(found, decisive)
        if near.alarm:
            unknown.append(f"it isn't shown on test images without a near duplicate among those trained on: {near.answer}")
    return "insufficient evidence" if unknown and decision == "use" else decision, (*reasons, *unknown)


def _unlike(found: Found, real: Sequence[Recipe]) -> list[str]:
    """What the generator knew and no real-only network did, in words; at most one entry."""
    study, data = found.study, found.setting.data
    pooled, started = data.pool_labels is not None, data.elsewhere
    if any((own.unlabelled == "pool" or not pooled) and (own.start == "transfer" or not started) for own in real):
        return []
    arm = {(True, False): "pool_labels", (False, True): "transfer", (True, True): "transfer_pool"}[pooled, started]
    had = " and ".join(["the labels of a pool"] * pooled + ["weights from elsewhere"] * started)
    what = f"add {arm} to gain.arms"
    if arm in study.skipped:
        what = f"{arm}: {study.skipped[arm]}"
    elif started and data.pretrained is None and data.transformer is None:
        what += ", and give gain.transfer"
    return [f"the generator had {had}, and no real-only network did: {what}"]


def losers(classes: Sequence[ClassGain], decision: Verdict) -> tuple[str, ...]:
    """A warning for each class or group that loses, whatever the whole does."""
    return tuple(
        f"{'although the whole gains, ' if decision == 'use' else ''}the {c.kind} {c.name!r} loses {-c.difference:.2f} points "
        f"(95% interval {c.low:+.2f} to {c.high:+.2f}, {c.num_test} test images)"
        for c in classes
        if c.harmed
    )


def advice(found: Found) -> tuple[str, ...]:
    """What to do next: the arm to use, the best for its cost, classes to collect, when to stop."""
    study, lines = found.study, []
    judged = [arm for arm in study.votes if arm_of(arm).judged]
    lines.append(_best_per_cost(found, [arm for arm in judged if not arm_of(arm).synthetic]))
    gain = found.interval(study.single_synthetic, study.single_real)
    if gain is not None:
        lines.append(_per_minute(found, gain))
    curve = found.curve
    if curve is not None and curve.next_gain is not None:
        value, low, high = curve.next_gain
        largest = curve.points[-1].num_real
        outside = len(found.setting.data.train) + curve.next_images > largest
        beyond = f", beyond the {largest} images that it was measured to" if outside else ""
        lines.append(
            f"{curve.next_images} more labelled real images would bring about {value:+.1f} points "
            f"({low:+.1f} to {high:+.1f}, by the fitted curve{beyond})"
        )
        if high < found.setting.gain.smallest_gain:
            lines.append(
                "more real images of this kind hardly help any more: better labels, resolution or another task definition"
            )
    if found.needs is not None:
        ranked = [(n, name) for n, name in zip(found.needs, found.setting.data.spec.class_names, strict=True) if n is not None]
        first = [(n, name) for n, name in sorted(ranked, key=lambda item: -item[0][0])[:3] if n[1] > 0]
        if first:
            named = ", ".join(f"{name} ({n[0]:+.1f}, {n[1]:+.1f} to {n[2]:+.1f})" for n, name in first)
            lines.append(
                f"classes that would gain most recall from the next {found.setting.gain.next_images} real images: {named}"
            )
    lines += [_given_away(found), _what_to_label(found)]
    return tuple(line for line in lines if line)


def _per_minute(found: Found, gain: Interval) -> str:
    made, seconds = found.setting.data.made_in_s, found.seconds(gain.arm)
    text = f"{_said(gain)} for "
    if not made:  # somebody else's images
        return f"{text}{seconds:.1f} s a network; what the images took isn't known here"
    minutes = (made + seconds) / 60
    ends = f"{gain.difference / minutes:+.2f} points a minute ({gain.low / minutes:+.2f} to {gain.high / minutes:+.2f})"
    return f"{text}{made:.0f} s of generator and gate and {seconds:.1f} s a network: {ends}"


def _given_away(found: Found) -> str:
    """How the samples alone compare with the real images that they would stand in for; empty where it wasn't asked."""
    i = _least_alone(found)
    if i is None:
        return ""
    if i.low >= -AIM_ALONE:
        enough = f"at most {AIM_ALONE:g} points below"
    else:
        enough = f"{'' if i.high < -AIM_ALONE else 'perhaps '}more than {AIM_ALONE:g} points below"
    return f"instead of the real images, not beside them: {_said(i)}, {enough}"


def _what_to_label(found: Found) -> str:
    """The way of choosing images to label that beats random choice, by Holm over all of them; empty where none was simulated."""
    active = [arm for arm in found.study.votes if arm_of(arm).role == "active"]
    against = corrected([i for arm in active if (i := found.interval(arm, "active_random")) is not None])
    if not against:
        return ""
    best = max(against, key=lambda i: i.difference)
    start = f"of {found.setting.gain.acquire} images to label next, "
    if best.low > 0 and best.p_holm < 0.05:
        return f"{start}{best.arm.removeprefix('active_')} would have found the best: {_said(best)}, simulated"
    tried = " nor ".join(i.arm.removeprefix("active_") for i in against)
    return f"{start}no way of choosing is told apart from random choice, {'neither ' * (len(against) > 1)}{tried} (simulated)"


def _best_per_cost(found: Found, arms: Sequence[str]) -> str:
    """The cheapest real-only arm whose interval against the strongest covers 0."""
    best = found.study.best_real
    equal = [best]
    for arm in arms:
        against = found.interval(arm, best)
        if against is not None and against.high >= 0:
            equal.append(arm)
    cheapest = min(equal, key=found.seconds)
    energy = found.seconds(best) * found.setting.watts / 3600
    text = (
        f"strongest of real images alone: {best}, {found.accuracy(best):.1f}% for {found.seconds(best):.1f} s "
        f"(about {energy:.2g} Wh)"
    )
    if cheapest == best:
        return text
    return f"{text}; {cheapest} isn't told apart from it, {found.accuracy(cheapest):.1f}% for {found.seconds(cheapest):.1f} s"


def controls(found: Found, decisive: Sequence[tuple[str, str]]) -> tuple[Control, ...]:
    """What a sceptic asks: more labels, more steps, copies, a teacher's doing, leakage, luck, cost."""
    return (
        _equal_information(found),
        _equal_steps(found, decisive),
        _copies(found),
        _teacher(found),
        _near_duplicates(found, decisive),
        _opened(found),
        _stand_in(found),
        _ceiling(found),
        _cost(found),
        _luck(found, decisive),
    )


def _not_run(found: Found, question: str, *arms: str) -> Control:
    """A question that the study leaves open, with the reason or the way to have it answered."""
    missing = [arm for arm in arms if arm not in found.correct]
    reasons = [f"{arm}: {found.study.skipped[arm]}" for arm in missing if arm in found.study.skipped]
    unasked = [arm for arm in missing if arm not in found.study.skipped]
    if unasked:
        reasons.append(
            f"gain.study=full has {'it' if len(unasked) == 1 else 'them'}, or add {' and '.join(unasked)} to gain.arms"
        )
    return Control(question, f"not run: {'; '.join(reasons)}", False)


def _said(i: Interval) -> str:
    return f"{i.arm} against {i.baseline} {i.difference:+.2f} points ({i.low:+.2f} to {i.high:+.2f})"


def _equal_information(found: Found) -> Control:
    i = found.interval("synthetic_trainval", "real_trainval")
    question = "What if real-only training may use every labelled image that generator, gate or selection saw?"
    if i is None:
        return _not_run(found, question, "real_trainval", "synthetic_trainval")
    return Control(question, _said(i), i.low <= 0)


def _equal_steps(found: Found, decisive: Sequence[tuple[str, str]]) -> Control:
    """Rings where a synthetic arm that decides took more steps, or drew more images, than every real-only one that decides."""
    spent = {row.arm: (row.steps, row.drawn) for row in found.rows if row.steps}
    lengths: dict[tuple[int, int], list[str]] = {}
    for arm, length in spent.items():
        lengths.setdefault(length, []).append(arm)
    usual = max(lengths, key=lambda length: len(lengths[length]), default=(0, 0))
    answer = f"every network took {usual[0]:,} steps and drew {usual[1]:,} images in them"
    others = [f"{' and '.join(arms)} {n:,} steps and {d:,} images" for (n, d), arms in lengths.items() if (n, d) != usual]
    answer += f", but {'; '.join(others)} (those before its own training included)" if others else ""
    rivals = [spent[base] for _, base in decisive if base in spent]
    ours = [spent[arm] for arm, base in decisive if arm in spent and base in spent]
    answer += _more_steps(found)
    longer = [max(each[k] for each in ours) > max(each[k] for each in rivals) for k in (0, 1) if ours]  # steps; images
    return Control("Do both sides train as long?", answer, any(longer))


def _more_steps(found: Found) -> str:
    """What longer training of real images alone brings; empty where it wasn't asked."""
    if "real_longer" in found.study.skipped:
        return f". More steps: {found.study.skipped['real_longer']}"
    more = found.interval("real_longer", "real_aug")
    times = found.study.tuned.get("real_longer", 2)
    return f". More steps, {times:g} times as many at the usual strength of augmentation: {_said(more)}" if more else ""


def _stand_in(found: Found) -> Control:
    question = "Could the synthetic images be given away in place of the real ones?"
    i = _least_alone(found)
    if i is None:
        return _not_run(found, question, "synthetic_only")
    answer = f"trained on them alone: {_said(i)}; at most {AIM_ALONE:g} points below is the usual aim"
    return Control(question, answer, i.low < -AIM_ALONE)


def _least_alone(found: Found) -> Interval | None:
    """The samples alone against the strongest real-only arm of one network, or classical model, that val leaves open."""
    rivals = [arm for arm in found.study.contenders if arm_of(arm).role in SINGLE] or [found.study.single_real]
    against = [i for arm in rivals if (i := found.interval("synthetic_only", arm)) is not None]
    return min(against, key=lambda i: i.low, default=None)


def _asked(found: Found, question: str, *pairs: tuple[str, str]) -> tuple[list[Interval], Control]:
    """The pairs that were run, that of the arm that decides first; and what is said where none was."""

    def rank(pair: tuple[str, str]) -> tuple[bool, bool]:
        known = any(arm in found.correct or arm in found.study.skipped for arm in pair)
        return found.study.single_synthetic not in pair, not known

    ordered = sorted(pairs, key=rank)
    every = [i for pair in ordered if (i := found.interval(*pair)) is not None]
    return every, _not_run(found, question, *ordered[0])


def _copies(found: Found) -> Control:
    question = "Is the gain made by copies of the training images?"
    pairs = ("synthetic_with_copies", "synthetic_gated"), ("synthetic_pool_with_copies", "synthetic_pool")
    every, control = _asked(found, question, *pairs)
    if not every:
        return replace(control, answer=f"the gate drops copies before the study; {control.answer}")
    return Control(question, f"with the copies left in: {'; '.join(map(_said, every))}", every[0].low > 0)


def _teacher(found: Found) -> Control:
    """Both sides were taught by the same networks: soft labels, or the pool's labels that the generator had too."""
    question = "Is it the teacher rather than the images? (real images alone, labelled by the same teacher)"
    every, control = _asked(found, question, ("synthetic_soft", "real_distilled"), ("synthetic_pool", "pool_labels"))
    return Control(question, "; ".join(map(_said, every)), every[0].low <= 0) if every else control


def _near_duplicates(found: Found, decisive: Sequence[tuple[str, str]]) -> Control:
    question = "Does the test set hold near duplicates of training images?"
    near, data = found.test.doubled, found.setting.data
    outside = data.unknown_start or not data.made_in_s  # a checkpoint or images of somebody else
    unknown = "; all that their generator was trained on isn't known here" if outside else ""
    if not near.any():
        seen = "the real images that arms may see, or the samples that the gate kept"
        return Control(question, f"no test image has a near duplicate among {seen}{unknown}", False)
    if near.all():
        return Control(question, "every test image has one: the test set says nothing about unseen images", True)
    without = [i for pair in decisive if (i := found.interval_on(~near, *pair)) is not None]
    if not without:
        return Control(question, f"{int(near.sum())} have one, and the others are of a single group: they say nothing", True)
    given = len(found.test.given_away)
    of_samples = f", {given} among the synthetic images{', whose generator may have seen them' * outside}" if given else ""
    answer = f"{int(near.sum())} have one{of_samples}; without them {'; '.join(map(_said, without))}"
    return Control(question, answer, any(i.low <= 0 for i in without))


def _ceiling(found: Found) -> Control:
    bases = dict.fromkeys((found.study.single_real, "real_aug"))  # the strongest, and the oracle's own recipe
    every = [i for base in bases if (i := found.interval("oracle", base)) is not None]
    if not every:
        return _not_run(found, "What would real images bring instead? (simulation)", "oracle")
    number = next(row.num_real for row in found.rows if row.arm == "oracle")
    return Control(f"What would {number} real images bring instead? (simulation)", "; ".join(map(_said, every)), False)


def _cost(found: Found) -> Control:
    arm = "real_committee_large"
    i = found.interval(found.study.best_synthetic, arm)
    question = "Would a larger real-only committee do as well, instead of generator and gate?"
    if i is None:
        return _not_run(found, question, arm)
    if not found.setting.data.made_in_s:
        return Control(question, f"{_said(i)}; what the synthetic images took isn't known here", i.low <= 0)
    spent = found.setting.data.made_in_s + found.seconds(found.study.best_synthetic)
    networks = next(row.networks for row in found.rows if row.arm == arm)
    answer = f"{_said(i)}; its {networks} networks cost {found.seconds(arm):.0f} s, the synthetic side {spent:.0f} s"
    each = fmean(found.study.network_s(cell) for voters in found.study.votes[arm] for cell, _ in voters)
    equal = networks + round((spent - found.seconds(arm)) / each) if each else networks  # tuning and teachers are paid once
    if equal > networks:
        answer += f", which is what about {equal} networks would cost (gain.large_committee={equal})"
    return Control(question, answer, i.low <= 0)


def _opened(found: Found) -> Control:
    question = "Was anything trained or chosen after the test images had been seen?"
    test = found.test
    if not test.opened_before:
        return Control(question, "no: they were opened once, when every network was trained and every arm chosen", False)
    since = "; then ".join(test.opened_before)
    if not test.trained_since:
        return Control(question, f"no: the same networks were assessed anew ({since})", False)
    return Control(question, f"{test.trained_since} networks were trained after them ({since})", True)


def _luck(found: Found, decisive: Sequence[tuple[str, str]]) -> Control:
    every = [found.intervals[pair] for pair in decisive]
    pairs = [every[0], *(i for i in every[1:] if i.baseline.endswith("trainval") or i.p == max(e.p for e in every))]
    answer = "; ".join(_chances(i) for i in pairs)
    answer += ". One generator was trained, on one draw of the labelled images: no interval here covers another draw"
    return Control("Could it be luck of seeds or test images?", answer, any(i.p > 0.05 for i in every))


def _chances(i: Interval) -> str:
    p = "< .001" if i.p < 0.001 else f"= {i.p:.3f}"
    effect = "" if i.effect_size is None else f", d = {i.effect_size:.2f}"
    return f"{i.arm} against {i.baseline}: p {p}, bootstrap {i.boot_low:+.2f} to {i.boot_high:+.2f}{effect}"
