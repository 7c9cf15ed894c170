"""A fleet without hypervisors: real sessions of real certificates, imitated engines. See `fleet.py`."""
