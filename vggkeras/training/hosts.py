"""Several hosts that train one network: how they agree, stop and end together.

Keras' JAX backend computes on all of them (`keras.distribution`). It does not say which host is
missing or how two differ, and where one ends it aborts the others or lets them wait. So every host
keeps a connection to the first one, for short messages: lines of JSON. They are neither encrypted
nor authenticated, as JAX's own are not: only the hosts may reach the port.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import queue
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, Self, TypeVar

import keras

from vggkeras.errors import InputError, visible

GRACE_SECONDS = 5.0  # in which a training step that another host has left has to fail by itself
END_SECONDS = 60.0  # in which the other hosts have to end
SILENT_SECONDS = 30  # after which a machine that does not answer is lost
POLL_SECONDS = 0.2
AGAIN = "start the command on every host again, with --resume if a run was begun"


class Jsonable(Protocol):
    """What can be sent to another host."""

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON."""

    @classmethod
    def from_json(cls, value: Any, where: str) -> Self:
        """Return what `to_json` gave."""


J = TypeVar("J", bound=Jsonable)


class Hosts:
    """The hosts of a training; one, alone, until others are linked."""

    def __init__(self, index: int = 0, count: int = 1) -> None:
        """Be host `index` of `count`."""
        self.index, self.count = index, count
        self.lost = ""  # why the training cannot go on, once another host has ended
        self._links: dict[int, socket.socket] = {}  # of the first host: one to each of the others
        self._messages: dict[int, queue.SimpleQueue] = {}
        self._readers: list[threading.Thread] = []
        self._closing = threading.Event()
        self._computes = False  # whether JAX does, on all of them

    @property
    def is_first(self) -> bool:
        """Whether this host is the one that writes the run."""
        return self.index == 0

    def link(self, host: int, connection: socket.socket) -> None:
        """Take up a connection, and read from it in a thread."""
        _notice_silence(connection)
        self._links[host], self._messages[host] = connection, queue.SimpleQueue()
        reader = threading.Thread(target=self._read, args=(host, connection), daemon=True)
        self._readers.append(reader)
        reader.start()

    def gather(self, value: Any) -> list[Any]:
        """Return every host's value, JSON, by host. Every host has to call this.

        Raises:
            InputError (a ValueError): another host has ended.
        """
        if self.count == 1:
            return [value]
        if not self.is_first:
            self._send(0, {"value": value})
            return self._receive(0)
        values = [
            json.loads(json.dumps(value)),
            *(self._receive(host) for host in range(1, self.count)),
        ]
        for host in self._links:
            self._send(host, {"value": values})
        return values

    def any_of(self, flags: Sequence[bool]) -> list[bool]:
        """Return for each flag whether a host has set it. Every host has to call this."""
        return [any(values) for values in zip(*self.gather(list(flags)), strict=True)]

    def of_first(self, work: Callable[[], J | None], kind: type[J]) -> J | None:
        """Do work on the first host alone, and return its result on every one."""
        result = work() if self.is_first else None
        sent = self.gather(result and result.to_json())[0]
        return result if self.is_first else sent and kind.from_json(sent, "the first host")

    def agree(self, facts: Mapping[str, Any]) -> None:
        """Check that all hosts have the same facts.

        Raises:
            InputError (a ValueError): they do not; the message names each difference.
        """
        different = differences(self.gather(dict(facts)))
        if different:
            raise InputError(
                f"The hosts differ: {'; '.join(different)}. Give all the same recipe, data and "
                "libraries."
            )

    def start(self, seed: int) -> None:
        """Let Keras compute on all hosts. Nothing may have been computed before.

        Raises:
            InputError (a ValueError): JAX was in use, or the hosts have unequal numbers of devices.
        """
        if self.count == 1:
            return
        import jax

        keras.utils.set_random_seed(seed)  # else Keras makes the hosts agree on one
        # A host that ends is noticed here, and ends the others with a message.
        jax.config.update("jax_enable_recoverability", True)
        jax.config.update("jax_enable_preemption_service", False)  # it takes SIGTERM
        try:
            keras.distribution.initialize()
        except RuntimeError as error:
            raise InputError(
                f"JAX cannot compute on several hosts ({str(error)[:200]}): train in a new process "
                "in which JAX has not computed anything."
            ) from error
        self._computes = True
        self.agree({"the number of devices": jax.local_device_count()})

    def close(self, error: BaseException | None = None) -> None:
        """Tell the other hosts that this one ends, and why; the first one ends last."""
        self._closing.set()
        if self.count == 1:
            return
        reason = "" if error is None else self.lost or self._reason(error)
        for host in self._links:
            self._send(host, {"bye": reason})
        until = time.monotonic() + END_SECONDS
        if self.is_first:  # its process serves JAX
            for reader in self._readers:
                reader.join(max(0.0, until - time.monotonic()))
        if self._computes:
            import jax

            jax.distributed.shutdown()
        for connection in self._links.values():
            with contextlib.suppress(OSError):  # the other end has gone
                connection.shutdown(socket.SHUT_RDWR)
            connection.close()

    def explained(self, error: BaseException) -> BaseException:
        """Return why a training fails where it fails because another host has ended."""
        if self.count > 1 and isinstance(error, Exception) and not isinstance(error, InputError):
            until = time.monotonic() + GRACE_SECONDS / 2
            while not self.lost and time.monotonic() < until:
                time.sleep(POLL_SECONDS)
            if self.lost:
                return InputError(f"{self.lost}: {AGAIN}.")
        return error

    def _reason(self, error: BaseException) -> str:
        text = " ".join(str(error).split())
        if isinstance(error, KeyboardInterrupt):
            text = "it was interrupted"
        return f"host {self.index} ended ({text or type(error).__name__})"

    def _send(self, host: int, message: Mapping[str, Any]) -> None:
        with contextlib.suppress(OSError):  # it has ended, which its reader tells
            self._links[host].sendall(json.dumps(message).encode() + b"\n")

    def _receive(self, host: int, until: float = math.inf) -> Any:
        while time.monotonic() < until:
            with contextlib.suppress(queue.Empty):
                return self._messages[host].get(timeout=POLL_SECONDS)
            if self.lost:
                raise InputError(f"{self.lost}: {AGAIN}.")
        raise InputError(f"Host {host} did not answer: is its address that of a vggkeras train?")

    def _read(self, host: int, connection: socket.socket) -> None:
        """Put what another host sends into its queue, until it ends."""
        bye = None
        with contextlib.suppress(OSError), connection.makefile("rb") as lines:
            for line in lines:
                message = json.loads(line)
                if "bye" in message:
                    bye = message["bye"]
                    self._ended(bye, GRACE_SECONDS)
                else:
                    self._messages[host].put(message["value"])
        if bye is None:
            # JAX aborts this process as soon as it notices that the first host is lost.
            self._ended(
                f"host {host} is lost (its process was killed, or its machine or the network "
                "failed)",
                GRACE_SECONDS if host else 0.0,
            )

    def _ended(self, reason: str, grace: float) -> None:
        """Note why another host has ended; end this process where it does not end by itself."""
        if not reason or self._closing.is_set():
            return
        self.lost = self.lost or reason
        for host in list(self._links) if self.is_first else ():
            self._send(host, {"bye": self.lost})
        if not self._closing.wait(grace):  # a step waits for the other host's part for ever
            print("error: " + visible(f"{self.lost}: {AGAIN}."), file=sys.stderr, flush=True)
            sys.stdout.flush()
            os._exit(2)


ALONE = Hosts()


def differences(everyone: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return in words what differs between the hosts' facts, by host."""
    found = []
    for name in dict.fromkeys(name for facts in everyone for name in facts):
        hosts: dict[str, list[str]] = {}
        for host, facts in enumerate(everyone):
            value = repr(facts[name]) if name in facts else "missing"
            hosts.setdefault(value, []).append(str(host))
        if len(hosts) > 1:
            values = [f"{value} on host {', '.join(on)}" for value, on in hosts.items()]
            found.append(f"{name} is {' and '.join(values)}")
    return found


def _notice_silence(connection: socket.socket) -> None:
    """Let a connection end where the other machine has not answered for `SILENT_SECONDS`."""
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (
        ("TCP_KEEPIDLE", SILENT_SECONDS // 3),
        ("TCP_KEEPINTVL", SILENT_SECONDS // 6),
        ("TCP_KEEPCNT", 4),
        ("TCP_USER_TIMEOUT", SILENT_SECONDS * 1000),
    ):
        if hasattr(socket, name):  # not on every system
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
