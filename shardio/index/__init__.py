"""Which samples a shard holds and where: indexes, the manifest, and how a source is opened."""
