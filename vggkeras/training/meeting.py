"""Several hosts of one training find each other, by Keras' own variables.

JAX waits for a host that does not come, and then aborts without saying which one it was, so the
hosts meet here first.

Set these on every host (the address is the first host's), and give all the same command:

KERAS_BACKEND=jax KERAS_DISTRIBUTION_JOB_ADDRESSES=10.0.0.1:9876 KERAS_DISTRIBUTION_NUM_PROCESSES=2
KERAS_DISTRIBUTION_PROCESS_ID=0 python -m vggkeras train …
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import keras
from rich.console import Console

from vggkeras.errors import InputError
from vggkeras.training.hosts import END_SECONDS, POLL_SECONDS, Hosts

ADDRESSES, NUMBER, INDEX = VARIABLES = (
    "KERAS_DISTRIBUTION_JOB_ADDRESSES",
    "KERAS_DISTRIBUTION_NUM_PROCESSES",
    "KERAS_DISTRIBUTION_PROCESS_ID",
)
START_SECONDS = 300.0  # in which all hosts have to come


@dataclass(frozen=True)
class Settings:
    """What Keras' variables say."""

    address: str  # of the first host
    port: int
    count: int  # of hosts
    index: int  # of this host


def settings(environment: Mapping[str, str] = os.environ) -> Settings | None:
    """Return what Keras' variables say of the hosts; None where they are not set.

    Raises:
        InputError (a ValueError): they are incomplete or wrong, or the backend is not JAX.
    """
    values = {name: environment[name] for name in VARIABLES if environment.get(name)}
    if not values:
        return None
    if keras.backend.backend() != "jax":
        raise InputError(
            f"{next(iter(values))} is set, and with {keras.backend.backend()} training is "
            "single-host: set KERAS_BACKEND=jax, or unset the variable."
        )
    missing = [name for name in VARIABLES if name not in values]
    if missing:
        raise InputError(f"{next(iter(values))} is set: set {' and '.join(missing)} as well.")
    first, *others = values[ADDRESSES].split(",")
    address, _, port = first.strip().rpartition(":")
    numbers = (port, values[NUMBER], values[INDEX])
    if not address or not all(text.isascii() and text.isdigit() for text in numbers):
        raise InputError(
            f"Expected {ADDRESSES}=HOST:PORT, {NUMBER} and {INDEX} as whole numbers; received "
            f"{values[ADDRESSES]!r}, {values[NUMBER]!r} and {values[INDEX]!r}."
        )
    found = Settings(address.strip("[]"), *map(int, numbers))
    if others and len(others) + 1 != found.count:
        raise InputError(
            f"{ADDRESSES} has {len(others) + 1} addresses, and {NUMBER} is {found.count}: give one "
            "for each host, or that of the first one alone."
        )
    if found.index >= found.count or found.port >= 1 << 16:
        raise InputError(
            f"Expected {INDEX} below {NUMBER}, {found.count}, and a port below 65536; received "
            f"{found.index} and {found.port}."
        )
    return found


@contextmanager
def joined(console: Console) -> Iterator[Hosts]:
    """Give the hosts that Keras' variables name while the block runs; this one alone without them.

    Raises:
        InputError (a ValueError): the variables are wrong, the port is in use, a host does not
            come, or ends.
    """
    wanted = settings()
    alone = wanted is None or wanted.count == 1
    hosts = Hosts() if alone or wanted is None else meet(wanted, console)
    try:
        yield hosts
    except BaseException as error:
        explained = hosts.explained(error)
        hosts.close(explained)
        if explained is error:
            raise
        raise explained from error
    hosts.close()


def meet(wanted: Settings, console: Console, seconds: float = START_SECONDS) -> Hosts:
    """Wait until all hosts have come; return them, linked.

    Raises:
        InputError (a ValueError): the port is in use; or within `seconds` a host does not come, or
            one comes that does not belong to the others.
    """
    hosts = Hosts(wanted.index, wanted.count)
    until = time.monotonic() + seconds
    try:
        if hosts.is_first:
            _await_others(hosts, wanted, console, until)
        else:
            hosts.link(0, _first_host(wanted, console, until))
            hosts._send(0, {"host": wanted.index, "hosts": wanted.count})
            hosts._receive(0, until + END_SECONDS)
    except BaseException as error:
        hosts.close(error)
        raise
    return hosts


def _await_others(hosts: Hosts, wanted: Settings, console: Console, until: float) -> None:
    """Link the first host to the others as they come."""
    both = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if both else socket.AF_INET
    try:
        server = socket.create_server(("", wanted.port), family=family, dualstack_ipv6=both)
    except OSError as error:
        problem = "is in use" if error.errno == errno.EADDRINUSE else f"cannot be used ({error})"
        raise InputError(
            f"Port {wanted.port} of this host, the first one, {problem}: give another one in "
            f"{ADDRESSES}, the same on every host."
        ) from error
    missing = list(range(1, wanted.count))
    console.print(f"waiting for host {_words(missing)} of {wanted.count} at port {wanted.port}")
    with server:
        while missing:
            server.settimeout(POLL_SECONDS)
            if hosts.lost:
                raise InputError(f"{hosts.lost}: start all hosts again.")
            try:
                connection, _ = server.accept()
            except TimeoutError:
                if time.monotonic() < until:
                    continue
                raise InputError(
                    f"Waited for host {_words(missing)} of {wanted.count}, and in vain: start the "
                    f"same command there, with {INDEX} set to its number."
                ) from None
            host, count = _greeting(connection)
            if host is None:  # none of ours
                connection.close()
            elif count != wanted.count or host not in missing:
                problem = f"{count} hosts" if count != wanted.count else f"host {host} twice"
                hosts.link(-1, connection)  # it is told
                raise InputError(
                    f"Expected host {_words(missing)} of {wanted.count}; there is a process that "
                    f"was started for {problem}: set {NUMBER} and {INDEX} rightly on every host."
                )
            else:
                missing.remove(host)
                hosts.link(host, connection)
    for host in range(1, wanted.count):
        hosts._send(host, {"value": "all have come"})


def _first_host(wanted: Settings, console: Console, until: float) -> socket.socket:
    """Return a connection to the first host, as soon as it is there."""
    address = (wanted.address, wanted.port)
    console.print(f"waiting for the first host at {wanted.address}:{wanted.port}")
    while True:
        try:
            connection = socket.create_connection(address, timeout=10 * POLL_SECONDS)
        except OSError as error:
            if time.monotonic() > until:
                raise InputError(
                    f"Waited for the first host at {wanted.address}:{wanted.port}, and in vain "
                    f"({error}): start the same command there, with {INDEX}=0."
                ) from error
        else:
            if connection.getsockname() != connection.getpeername():
                connection.settimeout(None)
                return connection
            connection.close()  # a port that nobody listens to can be connected to itself
        time.sleep(POLL_SECONDS)


def _greeting(connection: socket.socket) -> tuple[int | None, int]:
    """Return a host's number, and for how many it was started; None where it is none of ours."""
    connection.settimeout(10 * POLL_SECONDS)
    line = b""
    with contextlib.suppress(OSError, ValueError, LookupError, TypeError):
        while not line.endswith(b"\n") and len(line) < 100 and (byte := connection.recv(1)):
            line += byte
        greeting = json.loads(line)
        connection.settimeout(None)
        return int(greeting["host"]), int(greeting["hosts"])
    return None, 0


def _words(hosts: Sequence[int]) -> str:
    return ", ".join(map(str, hosts))
