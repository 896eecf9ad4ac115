"""Chapter 11: is a rewrite civil, does it mean the same, does it read well, and what else would have done."""
