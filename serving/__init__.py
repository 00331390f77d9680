"""Answer requests from bundles, over many protocols. Imports `cluster` and `trainers`."""
