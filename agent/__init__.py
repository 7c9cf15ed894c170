"""Backup Manager: does the work on one hypervisor."""
