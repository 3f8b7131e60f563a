"""Where bytes are: the storage protocol, local files, compression, cache and output folders."""
