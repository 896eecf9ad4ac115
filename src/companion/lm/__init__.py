"""A language model and what it writes: ids, loading, anatomy, decoding, activations."""
