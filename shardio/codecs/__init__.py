"""From the bytes of one field to what it holds; bytes never run code."""
