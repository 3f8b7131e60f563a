"""Order of the samples in an epoch, as pure arithmetic on counts, seed and topology."""
