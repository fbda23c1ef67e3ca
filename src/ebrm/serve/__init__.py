"""The HTTP server: `ebrm serve MODEL`."""
