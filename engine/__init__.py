"""Backup Manager: reads disks and writes restorable backups; works alone."""
