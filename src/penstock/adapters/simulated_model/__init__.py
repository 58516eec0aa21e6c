"""A model server of chosen speed that fails on request, for tests and benchmarks: real HTTP, invented text.

It stands apart from the other adapters because it is no part of serving: it plays the other side of the wire, counts
by a rule that a test can state (``counting``), and keeps a journal of its own that the ledger is compared with.
"""

from penstock.adapters.simulated_model.instructions import HELP, Instructions
from penstock.adapters.simulated_model.journal import Journal, Production
from penstock.adapters.simulated_model.serving import Server, Settings

__all__ = ["HELP", "Instructions", "Journal", "Production", "Server", "Settings"]
