"""The gateway: HTTP in, HTTP out; it knows OpenAI's wire format and no tables."""
