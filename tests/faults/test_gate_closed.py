"""The gate fails closed: a number that isn't one passes no threshold."""

from __future__ import annotations

import math

import numpy as np
import pytest

from synthgen.gate.signals import FAMILIES, is_bad


@pytest.mark.parametrize("threshold", [0.5, math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("family", FAMILIES)
def test_no_threshold_lets_a_nan_through(family, threshold, tally):
    found = is_bad(family, np.array([math.nan, math.nan, 0.5]), threshold)
    wrong = not found[:2].all() or (math.isnan(threshold) and not found.all())
    tally("gate", 1, wrong)
    assert not wrong


@pytest.mark.parametrize("family", FAMILIES)
def test_a_threshold_lets_what_keeps_it_through(family):
    high = FAMILIES[family].bad == "high"
    assert is_bad(family, np.array([0.4, 0.5, 0.6]), 0.5).tolist() == ([False, False, True] if high else [True, False, False])
