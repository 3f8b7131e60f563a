"""The plan: which samples, in what order, for which rank and worker. Arithmetic only."""
