"""Simulate how data-parallel training of configuration D scales: nothing here is measured.

python tests/benchmarks/hosts_efficiency.py
python tests/benchmarks/hosts_efficiency.py --tflops 400 --batch 32 --link-share 0.5

Every host computes a step's forward and backward pass layer by layer; a layer's gradient is ready
when its backward pass ends, the FC layers' first. Gradients are cut into buckets, which a ring
all-reduce sends in that order, one at a time, while the backward pass of earlier layers goes on. A
bucket is begun when every host has it. The next step begins when the last bucket is there. Hosts
differ by a random slowness in each step, so that all wait for the slowest one.

Efficiency is the time of a step without communication, on one host, over that of a step on N.
"""

from __future__ import annotations

import argparse
import heapq
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from vggkeras import configs

BACKWARD = 2  # floating-point operations of the backward pass, in those of the forward pass
HOSTS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
LINKS = (10, 25, 100, 400)  # Gbit/s
HOROVOD = 0.68  # VGG-16 on 512 P100 in 128 servers of 25 Gbit/s: github.com/horovod/horovod
# Images/s of VGG-16 on one P100, 64 a step, May 2017: tensorflow/docs,
# site/en/r1/guide/performance/benchmarks.md.
P100_IMAGES = 154.0


@dataclass(frozen=True)
class Assumptions:
    """What is assumed of hosts and of what is between them."""

    flops: float  # floating-point operations a second that a host reaches
    batch: int  # images of a step, a host
    link: float  # bytes/s, each way
    link_share: float = 0.7  # of it that an all-reduce reaches
    latency: float = 10e-6  # seconds of each of the ring's 2 (N - 1) messages of a bucket
    bucket: float = 25e6  # bytes; PyTorch's default, Horovod's is 64e6
    value_bytes: int = 4  # of a gradient: 4 float32, 2 bfloat16
    fc: bool = True  # whether the FC layers are trained (else: a network that ends in conv5)
    spread: float = 0.02  # standard deviation of a host's slowness, relative
    overlap: bool = True  # whether buckets are sent while the backward pass goes on
    per_server: int = 1  # GPUs that share a link; they add up among themselves first, for nothing


def layers(assumed: Assumptions) -> list[tuple[float, float]]:
    """Return (forward seconds, gradient bytes) of every layer with weights, in order."""
    return [
        (
            2 * layer.multiply_adds * assumed.batch / assumed.flops,
            layer.parameters * assumed.value_bytes,
        )
        for layer in configs.plan("D")
        if layer.parameters and (assumed.fc or layer.kind == "conv")
    ]


def buckets(parts: Sequence[tuple[float, float]], size: float) -> list[tuple[float, float]]:
    """Return (seconds of backward pass until it is ready, bytes) of each bucket, in order."""
    made: list[tuple[float, float]] = []
    at, waiting = 0.0, 0.0
    for forward, gradient in reversed(parts):
        at += BACKWARD * forward
        waiting += gradient
        while waiting >= size:
            made.append((at, size))
            waiting -= size
    return [*made, (at, waiting)] if waiting else made


def all_reduce_seconds(size: float, hosts: int, assumed: Assumptions) -> float:
    """Return the time of a ring all-reduce: each host sends 2 (N - 1) / N of the bytes."""
    ring = hosts // assumed.per_server
    if ring < 2:
        return 0.0
    messages = 2 * (ring - 1)
    speed = assumed.link * assumed.link_share
    return messages * (size / ring / speed + assumed.latency)


def step_seconds(hosts: int, assumed: Assumptions, chance: random.Random) -> float:
    """Simulate one step on all hosts, event by event; return when the last bucket is there."""
    parts = layers(assumed)
    made = buckets(parts, assumed.bucket)
    forward = sum(seconds for seconds, _ in parts)
    computing = (1 + BACKWARD) * forward
    events: list[tuple[float, int, int]] = []  # (time, host, bucket): the host has the gradient
    last = 0.0
    for host in range(hosts):
        slowness = max(0.5, chance.gauss(1.0, assumed.spread))
        last = max(last, slowness * computing)
        for number, (ready, _) in enumerate(made):
            at = forward + ready if assumed.overlap else computing
            heapq.heappush(events, (slowness * at, host, number))
    left = [hosts] * len(made)
    free, sent = 0.0, 0  # when the network is free, and the buckets that it has sent
    while events:
        now, _, number = heapq.heappop(events)
        left[number] -= 1
        while sent < len(made) and not left[sent]:
            free = max(free, now) + all_reduce_seconds(made[sent][1], hosts, assumed)
            sent += 1
    return max(free, last)


def efficiency(hosts: int, assumed: Assumptions, steps: int = 20) -> float:
    """Return the mean efficiency over some steps."""
    chance = random.Random(hosts)
    alone = (1 + BACKWARD) * sum(seconds for seconds, _ in layers(assumed))
    return alone * steps / sum(step_seconds(hosts, assumed, chance) for _ in range(steps))


def share_for(target: float, hosts: int, assumed: Assumptions) -> float:
    """Return the share of the link at which so many hosts reach an efficiency, by bisection."""
    low, high = 0.01, 1.0
    for _ in range(20):
        middle = (low + high) / 2
        found = efficiency(hosts, replace(assumed, link_share=middle), 5)
        low, high = (low, middle) if found > target else (middle, high)
    return high


def rows(assumed: Assumptions) -> Iterator[tuple[str, list[str]]]:
    """Yield a row of the table: what it is of, and the efficiency by number of hosts."""
    for link in LINKS:
        for value_bytes, name in ((4, "float32"), (2, "bfloat16")):
            for fc, network in ((True, "D"), (False, "D without FC")):
                case = replace(assumed, link=link / 8 * 1e9, value_bytes=value_bytes, fc=fc)
                yield f"{link} | {name} | {network}", [f"{efficiency(n, case):.2f}" for n in HOSTS]


def main() -> None:
    """Print the table, and what reproduces Horovod's figure."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--tflops", type=float, default=20.0, help="that a host reaches")
    parser.add_argument("--batch", type=int, default=32, help="images of a step, a host")
    parser.add_argument("--link-share", type=float, default=0.7, help="that an all-reduce reaches")
    parser.add_argument("--no-overlap", action="store_true", help="send when all is computed")
    flags = parser.parse_args()
    assumed = Assumptions(
        flags.tflops * 1e12,
        flags.batch,
        link=0.0,  # by row
        link_share=flags.link_share,
        overlap=not flags.no_overlap,
    )
    alone = (1 + BACKWARD) * sum(seconds for seconds, _ in layers(assumed))
    size = sum(gradient for _, gradient in layers(assumed)) / 1e6
    print(f"simulated: {assumed}")
    print(f"a step without communication: {1e3 * alone:.0f} ms; gradients {size:.0f} MB in float32")
    print(" | ".join(["Gbit/s | gradients | network", *map(str, HOSTS)]))
    for name, cells in rows(assumed):
        print(" | ".join([name, *cells]))
    flops_an_image = sum(2 * (1 + BACKWARD) * layer.multiply_adds for layer in configs.plan("D"))
    p100 = Assumptions(P100_IMAGES * flops_an_image, 64, 25 / 8 * 1e9, bucket=64e6, per_server=4)
    for overlap in (True, False):
        case = replace(p100, overlap=overlap)
        share = share_for(HOROVOD, 512, case)
        whole = efficiency(512, replace(case, link_share=1.0), 5)
        how = "overlap" if overlap else "no overlap"
        print(
            f"512 P100 in 128 servers, 25 Gbit/s, 64 images a GPU, {how}: {whole:.2f} at the "
            f"link's full speed; Horovod's {HOROVOD} "
            + ("cannot be reached" if whole < HOROVOD else f"at {share:.2f} of it")
        )


if __name__ == "__main__":
    main()
