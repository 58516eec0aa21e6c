"""Rehearses the main job: real requests are sent, and the ledger is compared with what the models say they made.

::

    traces (what to send) -> drawing (by whom) -> sending (over HTTP) -> comparing (the report)
"""
