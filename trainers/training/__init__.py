"""The training loop with its batches, losses, metrics and optimizers. Knows no Ray and no files."""
