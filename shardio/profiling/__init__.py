"""What a loader does with its time: measurements, and what follows from them."""
