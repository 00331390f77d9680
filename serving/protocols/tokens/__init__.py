"""Tokens of texts and texts of tokens, and the vectors of tokens."""
