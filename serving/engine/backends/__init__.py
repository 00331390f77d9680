"""The backends: a packed batch in, the model's raw outputs back; no words, labels or tasks."""
