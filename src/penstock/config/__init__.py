"""penstock.yaml: read, checked, explained, and compiled into what the quota understands.

::

    files ─reading─> one tree ─walking─> settings ─checking─> problems and warnings
                                            └──compiling──> penstock.quota.definitions
"""

from penstock.config.compiling import definitions
from penstock.config.settings import Configuration

__all__ = ["Configuration", "definitions"]
