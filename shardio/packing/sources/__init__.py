"""Where samples come from: each module turns one kind of source into samples."""
