"""Quota decides: limits, reservations and what they are charged. Pure: it reads no clock and opens no socket."""
