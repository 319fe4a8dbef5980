"""Fewest images a side that a metric means something of, and what is said where there are fewer."""

from __future__ import annotations

LEAST: dict[str, int] = {
    "fid": 50,  # collapse 24 of 24 (40: 23); half of the classes rejected in 24 (30: 17)
    "class_conditional_fid": 50,  # as FID, in each class; not measured by itself
    "kid": 60,  # collapse 23 of 24 (50: 16)
    "mmd": 75,  # collapse 24 of 24 (60: 18)
    "precision": 50,  # sees none of these defects (blur: 5 of 24 at 100, 0 below): no n is better than another
    "recall": 50,  # collapse 24 of 24 (40: 18)
    "density": 100,  # blur 24 of 24 (75: 19; 60: 1)
    "coverage": 50,  # static 24 of 24, blur 23, collapse 20 (40: 24, 15 and 8)
    "vendi": 60,  # collapse 22 of 24 (50: 18)
    "pixel_recall": 50,  # collapse 24 of 24 (40: 20)
    "pixel_coverage": 50,  # collapse 24 of 24 (40: 23)
    "support_shift": 50,  # sqrt(2 / 3n) x 1.96 = .23 between two draws of one distribution, half of the limit
    "low_level_shift": 50,
    "defect_shift": 50,
}
"""Metric -> fewest images a side. Shares of all candidates have Wilson intervals, which hold for any n.

The comments count draws in which the 95% interval of the excess lay wholly on the worse side, and in brackets those at
a smaller n: digits, three splits, 64 features learnt from 50 images, whole sets of one image a class (collapse), static,
or images blurred three times (blur). Of other real images it did in at most 1 of 24.
"""


def too_few(n: int, least: int, found: str) -> str:
    """Why n images a side are refused: how many are needed, and what was found.

    >>> too_few(30, 50, "60 reference images and 400 kept candidates")
    'refused: 30 images a side, at least 50 are needed (60 reference images and 400 kept candidates, at least 100 of each)'
    """
    return f"refused: {n} images a side, at least {least} are needed ({found}, at least {2 * least} of each)"
