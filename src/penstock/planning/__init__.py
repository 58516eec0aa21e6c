"""Computes what is planned and what came of it, from plain data: no configuration, no driver, no HTTP server."""
