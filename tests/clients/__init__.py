"""Real client packages against a server."""
