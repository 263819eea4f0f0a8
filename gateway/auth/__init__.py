"""Who asks: from what a request shows to a ``Caller``. Must not know any route, nor what callers do."""
