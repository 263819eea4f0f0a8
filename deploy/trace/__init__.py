"""``headrace trace``: the whole life of one response, from what the broker keeps of it."""
