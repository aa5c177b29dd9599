"""What a worker's socket says by its mode, and how the worker gets it.

The launcher makes the socket; the worker says with chmod(2) when it can serve, which fronts and control see through
inotify. A worker that is started without the launcher makes its own.
"""

from __future__ import annotations

import os
import socket
from typing import Final

SOCKET_VARIABLE: Final = "MODELHOST_SOCKET_FD"
"""The descriptor of the listening socket, in the worker's environment."""

SOCKET_NOT_READY: Final = 0o000
SOCKET_READY: Final = 0o600
SOCKET_DRAINED: Final = 0o400
"""It served, and ended because it was told to."""

BACKLOG: Final = 128
"""Connections that may wait for `accept`: fronts and control processes are few."""


def given_socket() -> socket.socket | None:
    """The listening socket that the launcher left; what the process runs later sees nothing of it."""
    descriptor = os.environ.pop(SOCKET_VARIABLE, None)
    if descriptor is None:
        return None
    listener = socket.socket(fileno=int(descriptor))
    listener.set_inheritable(False)
    return listener
