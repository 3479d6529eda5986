"""Streams of providers: transferred page by page, and their records."""
