"""Who runs next, under which limits, and what becomes of an attempt."""
