"""A search on disk: its configuration, budget and journal. Starts no trial and imports no Ray."""
