"""Field types: what the bytes of a member mean."""
