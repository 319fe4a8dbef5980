"""What synthetic data adds to the best that real data alone can do, on a locked test set."""
