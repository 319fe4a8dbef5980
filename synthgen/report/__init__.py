"""Records on disk -> one self-contained HTML page."""
