"""Damage bytes: flips, cuts, and edits where structure lies."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from typing import Any

KINDS = ("bit", "byte", "zeros", "cut", "insert", "remove", "repeat", "token")
TOKENS = (
    b"\xff\xff\xff\xff",
    b"\xff\xff\xff\xff\xff\xff\xff\xff\x7f",
    b"\x00\x00\x00\x80",
    b"\x7f\xff\xff\xff\xff\xff\xff\xff",
    b"PK\x01\x02",
    b"PK\x05\x06",
    b"[]",
    b"{}",
    b"null",
    b"1e999",
    b'"\xed\xa0\x80"',
    b"-1",
    b"|O",
    b"\x93NUMPY",
)
# What a field of JSON is replaced by.
VALUES: tuple[Any, ...] = (
    None,
    True,
    0,
    -1,
    10**12,
    1e308,
    "",
    "text",
    "\x1b[31m[/b]",
    [],
    [1],
    ["a"],
    [[]],
    {},
    {"a": 1},
)


@dataclass(frozen=True)
class Edit:
    """One change of a file's bytes."""

    kind: str  # one of KINDS
    position: float  # in [0, 1): of the bytes, or of the first or the last ones
    region: int  # 0: of all bytes; 1: of the first 512; 2: of the last 2,048
    number: int  # of the bit, of the byte's new value, of bytes, of the token

    def apply(self, data: bytes) -> bytes:
        """Return the changed bytes."""
        if not data:
            return TOKENS[self.number % len(TOKENS)]
        start, length = self._region(len(data))
        i, n = start + int(self.position * length), 1 + self.number % 64
        changed = bytearray(data)
        if self.kind == "bit":
            changed[i] ^= 1 << self.number % 8
        elif self.kind == "byte":
            changed[i] = (changed[i] + 1 + self.number % 255) % 256
        elif self.kind == "zeros":
            changed[i : i + n] = bytes(len(changed[i : i + n]))
        elif self.kind == "cut":
            del changed[i:]
        elif self.kind == "insert":
            changed[i:i] = random.Random(self.number).randbytes(n)
        elif self.kind == "remove":
            del changed[i : i + n]
        elif self.kind == "repeat":
            changed[i:i] = changed[i : i + n]
        else:
            token = TOKENS[self.number % len(TOKENS)]
            changed[i : i + len(token)] = token
        return bytes(changed)

    def _region(self, length: int) -> tuple[int, int]:
        if self.region == 1:
            return 0, min(length, 512)
        if self.region == 2:
            return max(0, length - 2048), min(length, 2048)
        return 0, length


def random_edit(rng: random.Random, kinds: tuple[str, ...] = KINDS) -> Edit:
    """Return one edit; half of them are somewhere in the whole file."""
    region = rng.choice((0, 0, 1, 2))
    return Edit(rng.choice(kinds), rng.random(), region, rng.randrange(1 << 16))


def damaged(data: bytes, rng: random.Random) -> tuple[bytes, list[Edit]]:
    """Return changed bytes, and what was done: mostly one flipped bit or byte."""
    kinds = ("bit", "byte") if rng.random() < 0.7 else KINDS
    while True:
        edits = [random_edit(rng, kinds) for _ in range(1 if rng.random() < 0.8 else 3)]
        changed = data
        for edit in edits:
            changed = edit.apply(changed)
        if changed != data:
            return changed, edits


def nodes(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the paths of all values inside a JSON value."""
    inside = value.items() if isinstance(value, dict) else ()
    inside = enumerate(value) if isinstance(value, list) else inside
    found = [path] if path else []
    for key, part in inside:
        found += nodes(part, (*path, key))
    return found


def with_node(value: Any, path: tuple[Any, ...], new: Any, *, remove: bool = False) -> Any:
    """Return a JSON value with another one at a path, or without it."""
    value = json.loads(json.dumps(value))
    *parents, last = path
    inside = value
    for key in parents:
        inside = inside[key]
    if remove:
        del inside[last]
    else:
        inside[last] = new
    return value


def other_json(value: Any, rng: random.Random) -> Any:
    """Return a JSON value with one part changed: a number a little, or to another type."""
    path = rng.choice(nodes(value))
    old = value
    for key in path:
        old = old[key]
    if isinstance(old, bool):
        return with_node(value, path, not old)
    if isinstance(old, int | float) and rng.random() < 0.7:
        return with_node(value, path, old * 2 + 1)
    remove = rng.random() < 0.2
    changed = with_node(value, path, rng.choice(VALUES), remove=remove)
    return other_json(value, rng) if changed == value else changed
