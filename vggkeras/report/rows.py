"""TODO"""

from __future__ import annotations

from typing import Any

from vggkeras.evaluation import tables
from vggkeras.evaluation.tables import with_interval


def error_rows(title: str, records: list[dict[str, Any]]) -> dict[str, Any]:
    """Rows of `evaluate.records` for people; each is compared with the first of its group."""
    short = tables.short_names(
        [path for record in records for path in record["model"].split(" + ")]
    )
    rows = []
    for number, record in enumerate(records):
        images = int(record["images"])
        against = next((a for a in record["against"] if a["row"] == 0), None)
        paper = [record["paper_top1_error"], record["paper_top5_error"]]
        rows.append(
            {
                "model": " + ".join(short[path] for path in record["model"].split(" + ")),
                "runtime": f"{record['runtime']} {record['version']}"
                if " + " not in record["model"]
                else record["runtime"],
                "provider": str(record["provider"]),
                "protocol": str(record["protocol"]),
                "scales": " ".join(f"{side:d}" for side in record["scales"]),
                "top1": with_interval(images - int(record["correct"]), images),
                "top5": with_interval(images - int(record["correct5"]), images)
                if len(record["recall"]) > 5
                else "-",
                "paper": None
                if None in paper
                else " / ".join(f"{100 * error:.1f}" for error in paper),
                "images": images,
                "ece": float(record["calibration_error"]),
                "gained": len(against["gained"]) if number and against else None,
                "lost": len(against["lost"]) if number and against else None,
                "p": f"{against['mcnemar_p']:.2g}" if number and against else None,
            }
        )
    return {"title": title, "rows": rows}
