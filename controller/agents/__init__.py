"""Dealing with agents: sessions, commands until they arrived, events, enrollment."""
