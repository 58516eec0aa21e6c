"""The quota in Redis: a function library that decides, and the connection that asks it."""
