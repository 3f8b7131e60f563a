"""Packing images into tar shards: sources, a plan of pure tasks, an engine that runs them."""
