"""Verifying shards, and repairing them: what is there, what is sound, what can be kept."""
