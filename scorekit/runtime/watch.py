"""Noticing that a process of a group is gone, whatever the others are doing."""

import secrets
import selectors
import socket
import threading
from collections.abc import Callable
from contextlib import suppress

from torch.distributed import Store

_GOODBYE = b"."
_RANK_BYTES = 8


class Watch:
    """A connection of each rank with rank 0, which the system closes the instant that one ends.

    A collective finds out only when it is called, and NCCL's only after a timeout. A thread here
    waits for a connection to close without a goodbye and calls ``lost`` with a message. Rank 0 is
    connected with all others, so that it ends when one of them does, and they when it does.

    ``store`` is one that the ranks share, ``host`` rank 0's address for the others. Raises OSError
    where they are not connected within ``timeout_s``.
    """

    def __init__(
        self,
        rank: int,
        size: int,
        store: Store,
        host: str,
        lost: Callable[[str], None],
        *,
        timeout_s: float,
    ) -> None:
        self._size, self._lost = size, lost
        self._peers: dict[socket.socket, int] = {}
        self._parting = threading.Event()
        if rank == 0:
            self._accept(store, timeout_s)
        else:
            port, token = store.get("watch").decode().split()
            peer = socket.create_connection((host, int(port)), timeout=timeout_s)
            peer.sendall(f"{token}{rank:{_RANK_BYTES}d}".encode())
            self._peers[peer] = 0
        for peer in self._peers:
            # A machine that vanishes closes nothing: it is asked, by default after two hours.
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            for name, value in (("TCP_KEEPIDLE", 20), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 4)):
                if hasattr(socket, name):  # not all of them everywhere
                    peer.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
            peer.settimeout(None)
        threading.Thread(target=self._wait, name="watch", daemon=True).start()

    def _accept(self, store: Store, timeout_s: float) -> None:
        token = secrets.token_hex(16)
        with socket.create_server(("", 0)) as server:
            server.settimeout(timeout_s)
            store.set("watch", f"{server.getsockname()[1]} {token}")
            while len(self._peers) < self._size - 1:
                peer, _ = server.accept()
                peer.settimeout(5.0)
                said, length = b"", len(token) + _RANK_BYTES
                with suppress(OSError):
                    while part := peer.recv(length - len(said)):
                        said += part
                told = said[: len(token)]
                if len(said) == length and secrets.compare_digest(told, token.encode()):
                    self._peers[peer] = int(said[len(token) :])
                else:
                    peer.close()  # a stranger, who scans ports

    def _wait(self) -> None:
        with selectors.DefaultSelector() as selector:
            for connection in self._peers:
                selector.register(connection, selectors.EVENT_READ, connection)
            while selector.get_map():
                for key, _ in selector.select():
                    peer: socket.socket = key.data
                    try:
                        said = peer.recv(1)
                    except OSError:
                        said = b""
                    if said != _GOODBYE and not self._parting.is_set():
                        rank = self._peers[peer]
                        self._lost(f"a rank died: rank {rank} of {self._size} is gone")
                    selector.unregister(peer)

    def part(self) -> None:
        """Say goodbye: the others may go on, or end, without this rank."""
        self._parting.set()
        for peer in self._peers:
            with suppress(OSError):  # it may have left before
                peer.sendall(_GOODBYE)
                peer.shutdown(socket.SHUT_WR)

    def abandon(self) -> None:
        """Leave without a goodbye, so that the others learn at once that this rank is gone."""
        self._parting.set()
        for peer in self._peers:
            with suppress(OSError):
                peer.shutdown(socket.SHUT_RDWR)
