"""Backup Manager: decides and remembers."""
