"""Fidelity metrics: each a small function of two feature sets, one idea a file.

frechet.py    Fréchet distance (FID), and the moments that it needs of a set
infinity.py   FID extrapolated to infinite sets
kernel.py     KID over all pairs and over subsets, RBF MMD, CMMD
prdc.py       precision, recall, density, coverage
diversity.py  Vendi score of one set
per_class.py  any of them, class by class
modules.py    all of them as torchmetrics.Metric

neighbours.py exact nearest neighbours, in tiles
copies.py     copies of training images in pixels and in features, duplicates inside a set
pixels.py     principal components of the pixels: features that no network has learnt
lowlevel.py   seven statistics of the pixels that a task network ignores

extractors.py networks from images to features, each with its transform and an id that covers both
features.py   what every metric checks of its features; micro-batches of one size
products.py   matrix products at the speed of the machine
subsets.py    random subsets that don't depend on the order of the rows
"""
