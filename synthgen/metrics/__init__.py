"""Fidelity metrics: each a small function of two feature sets, one idea a file.

frechet.py    Fréchet distance (FID)
kernel.py     KID, the unbiased polynomial MMD
prdc.py       precision, recall, density, coverage
neighbours.py nearest neighbours in features and in pixels: support, copies, duplicates
lowlevel.py   seven statistics of the pixels that a task network ignores
features.py   images -> FeatureSet under a network
"""
