"""Whether there is a hub at all: without a network, its library would try for a minute, again and again."""

from __future__ import annotations

import os
import socket
import sys
from threading import Event, Thread
from urllib.parse import urlsplit
from urllib.request import getproxies

_OFFLINE = "HF_HUB_OFFLINE"
_PATIENCE = 0.5  # s; a name that takes longer is left to the library


def go_offline_without_a_hub() -> None:
    """Set HF_HUB_OFFLINE where the hub's name cannot be resolved, so that what is on this machine alone is used.

    Nothing is done where the variable is set, where a proxy resolves names, and where the library has read it already.
    """
    if _OFFLINE in os.environ or "huggingface_hub" in sys.modules or getproxies():
        return
    host = urlsplit(os.environ.get("HF_ENDPOINT", "https://huggingface.co")).hostname
    unknown = Event()

    def resolve() -> None:
        try:
            socket.getaddrinfo(host, None)
        except OSError:
            unknown.set()

    thread = Thread(target=resolve, daemon=True)
    thread.start()
    thread.join(_PATIENCE)
    if unknown.is_set():
        os.environ[_OFFLINE] = "1"
