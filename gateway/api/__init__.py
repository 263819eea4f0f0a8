"""The surfaces: each parses its own JSON into a ``Generation`` and shows ``Update`` values as its events."""
