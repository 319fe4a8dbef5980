"""Which generator is exported: the gate's word first, then enough kept samples, then val."""

from __future__ import annotations

from synthgen.jobs.gains import preference


def best(**scores: tuple[str, float, float]) -> str:
    about = {name: {"gate": gate, "kept": kept, "val_loss": loss} for name, (gate, kept, loss) in scores.items()}
    return min(about, key=lambda name: preference(about[name], 0.2))


def test_the_gate_s_verdict_comes_first():
    assert best(a=("reject", 0.9, 0.1), b=("insufficient evidence", 0.9, 0.5), c=("accept", 0.3, 0.9)) == "c"


def test_a_handful_of_samples_that_change_nothing_do_not_win():
    assert best(vae=("reject", 0.005, 0.20), gan=("reject", 0.87, 0.25)) == "gan"
    assert best(vae=("reject", 0.005, 0.20), gan=("reject", 0.1, 0.25)) == "vae", "neither has enough"


def test_among_equals_val_decides():
    assert best(a=("accept", 0.9, 0.3), b=("accept", 0.3, 0.2)) == "b"
