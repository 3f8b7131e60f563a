"""Tar archives as shards: read their members at speed, write them deterministically."""
