"""What a model's text means: reasoning, message, tool calls. Pure; must not know logs, clients or any API."""
