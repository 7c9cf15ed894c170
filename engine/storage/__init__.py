"""Places where backups lie, behind one narrow interface (`base.py`)."""
