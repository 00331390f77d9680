"""The usable rows of a source: texts in a temporary file, and a few numbers a row in memory."""
