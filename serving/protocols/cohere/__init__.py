"""Cohere's calls beside reranking."""
