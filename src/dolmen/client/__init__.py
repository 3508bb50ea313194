"""What a Python program imports to talk to an API server."""
