"""The paper's Tables 1 and 2: `python -m vggkeras info [ARCH]`."""

from __future__ import annotations

from dataclasses import dataclass

import tyro
from rich.table import Table

from vggkeras import configs
from vggkeras.commands.common import console
from vggkeras.memory import activation_bytes
from vggkeras.terminal import print_table


@dataclass(frozen=True)
class Info:
    """Show the paper's Tables 1 and 2: all configurations, or the layers of one.

    Attributes:
        arch: A, A-LRN, B, C, D, E or an alias (VGG11, VGG13, VGG16, VGG19); all of them side by
            side when not given.
        image_size: Side of the input, px.
        classes: Number of classes.
    """

    arch: tyro.conf.Positional[str | None] = None
    image_size: int = 224
    classes: int = 1000

    def run(self) -> int:
        """Print the table."""
        shape = (self.image_size, self.image_size, 3)
        if self.arch is None:
            table = configurations_table(shape, self.classes)
        else:
            table = layers_table(configs.canonical_arch(self.arch), shape, self.classes)
        print_table(table, console)
        return 0


def configurations_table(shape: tuple[int, int, int], classes: int) -> Table:
    """Return Table 1, a column a configuration, and below it Table 2 and the cost of an image."""
    plans = {arch: list(configs.plan(arch, shape, classes)) for arch in configs.CONFIGURATIONS}
    table = Table(
        title=f"Tables 1 and 2 at {shape[0]} px, {classes} classes (conv k-n: k x k kernel, "
        "n filters)"
    )
    table.add_column("block")
    for arch in plans:
        table.add_column(arch, justify="center")
    for number in range(5):
        cells = []
        for blocks in configs.CONFIGURATIONS.values():
            entries = (
                entry.upper() if isinstance(entry, str) else f"{entry[0]}-{entry[1]}"
                for entry in blocks[number]
            )
            cells.append("\n".join(entries))
        table.add_row(str(number + 1), *cells, end_section=number == 4)
    aliases = {arch: alias for alias, arch in configs.ALIASES.items()}
    table.add_row("also called", *(aliases.get(arch, "") for arch in plans))
    for title, cell in (
        ("weight layers", lambda plan: str(sum(layer.multiply_adds > 0 for layer in plan))),
        ("parameters", lambda plan: f"{sum(layer.parameters for layer in plan):,}"),
        ("(millions)", lambda plan: f"{sum(layer.parameters for layer in plan) / 1e6:.0f}"),
        ("multiply-adds", lambda plan: f"{sum(layer.multiply_adds for layer in plan) / 1e9:.2f} G"),
        ("activations", lambda plan: f"{activation_bytes(plan) / 1e6:.0f} MB"),
    ):
        table.add_row(title, *(cell(plan) for plan in plans.values()))
    return table


def layers_table(arch: str, shape: tuple[int, int, int], classes: int) -> Table:
    """Return the layers of one configuration, a row each, with their sums."""
    layers = list(configs.plan(arch, shape, classes))
    table = Table(
        title=f"Configuration {arch} at {shape[0]} px, {classes} classes", show_footer=True
    )
    table.add_column("layer", footer="all")
    table.add_column("kernel")
    for title, footer in (
        ("output", ""),
        ("parameters", f"{sum(layer.parameters for layer in layers):,}"),
        ("multiply-adds", f"{sum(layer.multiply_adds for layer in layers):,}"),
        ("activations, bytes", f"{activation_bytes(layers):,}"),
    ):
        table.add_column(title, justify="right", footer=footer)
    for layer in layers:
        table.add_row(
            layer.name,
            f"{layer.kernel} x {layer.kernel}" if layer.kernel else "",
            " x ".join(map(str, layer.output_shape)),
            f"{layer.parameters:,}" if layer.parameters else "",
            f"{layer.multiply_adds:,}" if layer.multiply_adds else "",
            f"{activation_bytes([layer]):,}",
        )
    return table
