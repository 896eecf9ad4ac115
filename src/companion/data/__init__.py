"""The texts of a run: what ``data/`` ships, public data sets, near-duplicates."""
