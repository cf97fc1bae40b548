"""Deduplication: is this event identity new? Claims, their digest, and the two places that keep them (Redis, this process)."""
