"""One thin servicer per resource: check, call below, convert."""
