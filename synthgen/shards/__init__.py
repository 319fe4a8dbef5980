"""Batch <-> files: raw Parquet between stages; WebDataset and Hugging Face Parquet for export; the manifest last."""
