"""Wire types, ids and error codes shared by every part. No I/O, no asyncio, no clock."""
