"""PostgreSQL: the ledger, keys and all else that a cluster must not lose, and how the outbox gets there."""
