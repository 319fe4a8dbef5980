"""Real images in: sources, audit, splits, transforms. Importing the package imports none of them."""
