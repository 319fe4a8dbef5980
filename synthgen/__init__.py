"""synthgen: synthetic image data that is proven to help.

Train small generators on a few labelled images, let through only the samples that pass a fidelity gate, export them
as shards, and measure on a locked test set what they add to the best that real data alone can do.
"""

__version__ = "0.1.0"
