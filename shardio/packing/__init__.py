"""Pack samples into tar shards: sources, a plan of pure tasks, and engines that run them.

`pack` is the entry, `job` the sequence, `plan` the arithmetic; `task` writes one shard.
"""
