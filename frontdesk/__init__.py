"""The parts: each does one thing, and knows nothing of the files above."""
