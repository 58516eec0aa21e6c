"""Reaches model servers over HTTP/1.1.

Its own transport, since the general clients cost several times more than all the rest of a request: asyncio and
httptools, connections that are kept, one timer per connection.
"""

from penstock.adapters.http.client import HttpClient

__all__ = ["HttpClient"]
