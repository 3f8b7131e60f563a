"""Sources of samples: each module reads one kind, by the protocol that is here.

A source of one's own is made of these names; see docs/pages/guides/own-source.md.
"""

from shardio.packing.sources.base import FromFile as FromFile
from shardio.packing.sources.base import FromMemory as FromMemory
from shardio.packing.sources.base import FromRange as FromRange
from shardio.packing.sources.base import Problem as Problem
from shardio.packing.sources.base import Source as Source
from shardio.packing.sources.base import SourceField as SourceField
from shardio.packing.sources.base import SourceSample as SourceSample
