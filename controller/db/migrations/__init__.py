"""The history of the schema: numbered files, applied in order, never changed once released."""
