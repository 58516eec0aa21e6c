"""Who a command acts for, as the audit log names them."""

from __future__ import annotations

import getpass
import os


def actor(command: str) -> str:
    """``command:account`` of whoever runs this process; a container's account has a number and often no name."""
    try:
        return f"{command}:{getpass.getuser()}"
    except (KeyError, OSError):
        return f"{command}:{os.getuid()}"
