"""The order of an epoch: pure arithmetic on counts, seed and topology."""
