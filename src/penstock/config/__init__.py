"""penstock.yaml: read, checked, explained, and compiled into what the quota understands.

::

    files ─reading─> one tree ─walking─> settings ─checking─> problems and warnings
                                            └──compiling──> penstock.quota.definitions

``load(paths)`` gives a ``Configuration`` or raises with every problem; ``definitions(configuration, organisation)``
gives what governs an organisation, without its keys; ``read_secret`` follows a reference.
"""

from penstock.config.compiling import definitions
from penstock.config.loading import Examination, examine, examine_text, load
from penstock.config.notation import NotationError, Term, format_limit, parse_limit
from penstock.config.reading import Problem
from penstock.config.secrets import read_secret
from penstock.config.settings import Configuration

__all__ = [
    "Configuration",
    "Examination",
    "NotationError",
    "Problem",
    "Term",
    "definitions",
    "examine",
    "examine_text",
    "format_limit",
    "load",
    "parse_limit",
    "read_secret",
]
