"""Penstock: ML inference for many tenants, with exact token quotas, billed from a ledger."""
