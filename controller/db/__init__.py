"""The database: tables, the one thread that touches them, their history, and what lies sealed in them."""
