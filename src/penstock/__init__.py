"""Penstock: ML inference for many tenants, with exact token quotas, billed from a ledger."""

__version__ = "0.1.0"
