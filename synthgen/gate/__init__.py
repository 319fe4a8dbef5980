"""The gate: per sample keep or drop with a reason, per set accept, reject or insufficient evidence.

evidence.py    what it looks at: images with features, judges' probabilities, the detector's margins, by role
signals.py     one figure an image and family of evidence
filters.py     thresholds from held-out real images; keep, or drop with a reason
selection.py   which of the valid samples a budget takes
mix.py         the class mix that was planned, and how real images are brought to it
halves.py      halves of the reference, candidates to match, and what they score
least.py       fewest images a side, metric by metric
judge.py       the set's verdict, against real-against-real, with intervals
sensitivity.py what the per-sample checks find of planted copies and defects
intervals.py   intervals of shares and of shifts
"""
