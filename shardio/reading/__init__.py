"""Streaming samples into PyTorch: references to bytes, to pixels, into the batch."""
