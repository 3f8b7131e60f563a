"""Where the bytes of shards are: local files, the cache folder, atomic publishing."""
