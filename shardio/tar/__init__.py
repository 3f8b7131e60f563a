"""Fast reading and deterministic writing of tar archives."""
