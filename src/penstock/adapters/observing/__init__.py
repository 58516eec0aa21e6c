"""What a running service shows of itself: Prometheus metrics and one log line for each request.

Both implement ``penstock.ports.Observer`` and share one rule: a name that a client made up never becomes a label
or a field. ``Vocabulary`` keeps it.
"""
