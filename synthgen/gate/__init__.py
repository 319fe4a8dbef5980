"""The gate: per sample keep or drop with a reason (filters.py), per set accept or reject with intervals (judge.py)."""
