"""Builds the running parts from a configuration: the one place where adapters meet lanes."""
