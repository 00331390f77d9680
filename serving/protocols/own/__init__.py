"""Our own calls, for what no other protocol has."""
