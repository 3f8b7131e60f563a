"""python -m shardio: the command line."""

from shardio.cli import main

main()
