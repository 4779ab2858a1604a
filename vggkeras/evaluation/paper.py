"""TODO"""

from __future__ import annotations

from collections.abc import Sequence

from vggkeras.evaluation.statistics import Evaluation
from vggkeras.runtimes.predictor import Predictor

# Top-1 and top-5 error, %, on ILSVRC-2012's validation images: (configuration, S of training) -> (one test scale, several).
PAPER_DENSE: dict[
    tuple[str, str], tuple[tuple[float, float] | None, tuple[float, float] | None]
] = {  # Tables 3 and 4
    ("A", "256"): ((29.6, 10.4), None),
    ("A-LRN", "256"): ((29.7, 10.5), None),
    ("B", "256"): ((28.7, 9.9), (28.2, 9.6)),
    ("C", "256"): ((28.1, 9.4), (27.7, 9.2)),
    ("C", "384"): ((28.1, 9.3), (27.8, 9.2)),
    ("C", "256:512"): ((27.3, 8.8), (26.3, 8.2)),
    ("D", "256"): ((27.0, 8.8), (26.6, 8.6)),
    ("D", "384"): ((26.8, 8.7), (26.5, 8.6)),
    ("D", "256:512"): ((25.6, 8.1), (24.8, 7.5)),
    ("E", "256"): ((27.3, 9.0), (26.9, 8.7)),
    ("E", "384"): ((26.9, 8.7), (26.7, 8.6)),
    ("E", "256:512"): ((25.5, 8.0), (24.8, 7.5)),
}
PAPER_JITTERED: dict[
    tuple[tuple[str, ...], str], tuple[float, float]
] = {  # Tables 5 and 6: S in [256, 512], three Q
    (("D",), "multicrop"): (24.6, 7.5),
    (("D",), "both"): (24.4, 7.2),
    (("E",), "multicrop"): (24.6, 7.4),
    (("E",), "both"): (24.4, 7.1),
    (("D", "E"), "dense"): (24.0, 7.1),
    (("D", "E"), "multicrop"): (23.9, 7.2),
    (("D", "E"), "both"): (23.7, 6.8),
}
PAPER_CLASSES = 1000


def paper_errors(predictors: Sequence[Predictor], row: Evaluation) -> tuple[float, float] | None:
    """The paper's top-1 and top-5 error, %, for a row's networks, protocol and scales; None where it has none.

    Only for ImageNet's 1000 classes. A model that does not say how it was trained is taken for one of S in [256, 512],
    which the published weights are.
    """
    if len(row.class_names) != PAPER_CLASSES:
        return None
    trained = {
        (_arch(model), (model.card.recipe and model.card.recipe.scale) or "256:512")
        for model in predictors
        if str(model.path) in row.models
    }
    archs, sides = tuple(sorted({arch for arch, _ in trained})), {side for _, side in trained}
    if len(sides) != 1:
        return None
    (side,) = sides
    three = (
        (256, 384, 512)
        if side == "256:512"
        else tuple(int(side) + d for d in (-32, 0, 32))
        if side.isdigit()
        else ()
    )
    if row.protocol == "dense" and len(archs) == 1:
        one, several = PAPER_DENSE.get((archs[0], side), (None, None))
        return one if row.scales == (three[1],) else several if row.scales == three else None
    if side == "256:512" and row.scales == three:
        return PAPER_JITTERED.get((archs, row.protocol))
    return None


def _arch(model: Predictor) -> str:
    """The paper's letter of a model, from what travels with it: a recipe's D, or a network's name, vgg_d."""
    return model.card.arch.lower().removeprefix("vgg_").upper().replace("_", "-")
