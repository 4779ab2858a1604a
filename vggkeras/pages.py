"""HTML pages from Jinja2 templates: self-contained, with every value escaped."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def rendered(template: Path, **values: Any) -> str:
    """Render a template file with the values that it names; text is escaped.

    Raises:
        jinja2.UndefinedError: the template names a value that is not given.
    """
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(template.parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "percent": percent,
        "thousands": lambda number: f"{number:,}",
        "svg": jinja2.utils.markupsafe.Markup,
    }
    return environment.get_template(template.name).render(**values)


def percent(share: float) -> str:
    return f"{100 * share:.2f}%"
