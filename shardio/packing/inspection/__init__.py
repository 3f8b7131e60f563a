"""Looking at shards: what is in them, by their indexes and a few members."""
