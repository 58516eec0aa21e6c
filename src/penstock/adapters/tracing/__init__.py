"""Traces for OpenTelemetry. Apart, and imported only where they are on: the SDK is large, and an extra.

Only names, numbers and ids that the log carries too become attributes: no prompt, answer, key's secret or token.
"""
