"""Backup Manager: generated clients and bmctl."""
