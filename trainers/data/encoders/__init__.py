"""What encoders of texts have in common, and the one that reads numbers."""
