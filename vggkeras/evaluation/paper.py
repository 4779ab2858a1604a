"""The paper's results on ILSVRC-2012 val, and which of them belongs beside a row of an evaluation.

Tables 3 to 6: top-1 and top-5 error, %, by configuration and training scale S.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from vggkeras.data import imagenet
from vggkeras.evaluation.statistics import Evaluation
from vggkeras.runtimes.predictor import Predictor


class Errors(NamedTuple):
    """Top-1 and top-5 error, %; of localization the paper has one of them."""

    top1: float | None
    top5: float | None


JITTERED = "256:512"  # S drawn from [256, 512] for every image

# Dense, one test scale Q: S, or 384 where S is jittered.
TABLE_3 = {
    ("A", "256"): Errors(29.6, 10.4),
    ("A-LRN", "256"): Errors(29.7, 10.5),
    ("B", "256"): Errors(28.7, 9.9),
    ("C", "256"): Errors(28.1, 9.4),
    ("C", "384"): Errors(28.1, 9.3),
    ("C", JITTERED): Errors(27.3, 8.8),
    ("D", "256"): Errors(27.0, 8.8),
    ("D", "384"): Errors(26.8, 8.7),
    ("D", JITTERED): Errors(25.6, 8.1),
    ("E", "256"): Errors(27.3, 9.0),
    ("E", "384"): Errors(26.9, 8.7),
    ("E", JITTERED): Errors(25.5, 8.0),
}
# Dense, three test scales Q: S - 32, S, S + 32, or 256, 384, 512 where S is jittered.
TABLE_4 = {
    ("B", "256"): Errors(28.2, 9.6),
    ("C", "256"): Errors(27.7, 9.2),
    ("C", "384"): Errors(27.8, 9.2),
    ("C", JITTERED): Errors(26.3, 8.2),
    ("D", "256"): Errors(26.6, 8.6),
    ("D", "384"): Errors(26.5, 8.6),
    ("D", JITTERED): Errors(24.8, 7.5),
    ("E", "256"): Errors(26.9, 8.7),
    ("E", "384"): Errors(26.7, 8.6),
    ("E", JITTERED): Errors(24.8, 7.5),
}
# S jittered, Q = 256, 384, 512, by protocol; D and E fused in Table 6. Dense D and E: Table 4.
TABLES_5_AND_6 = {
    (("D",), "multicrop"): Errors(24.6, 7.5),
    (("D",), "both"): Errors(24.4, 7.2),
    (("E",), "multicrop"): Errors(24.6, 7.4),
    (("E",), "both"): Errors(24.4, 7.1),
    (("D", "E"), "dense"): Errors(24.0, 7.1),
    (("D", "E"), "multicrop"): Errors(23.9, 7.2),
    (("D", "E"), "both"): Errors(23.7, 6.8),
}

# Localization (Appendix A), D. The central crop, the class given; by regression, and which layers
# are tuned. S = Q is 256 or 384: the table does not say which.
TABLE_8 = {
    ("scr", "fc"): Errors(36.4, None),
    ("pcr", "fc"): Errors(34.3, None),
    ("pcr", "all"): Errors(33.1, None),
}
# Dense, PCR, all layers tuned; by S, and Q.
TABLE_9 = {
    ("256", (256,)): Errors(None, 29.5),
    ("384", (384,)): Errors(None, 28.2),
    ("384", (352, 384)): Errors(None, 27.5),
}


def paper_localization(
    predictors: Sequence[Predictor], row: Evaluation, class_given: bool
) -> Errors | None:
    """Return the paper's error for a row of a network of boxes; None where it has none."""
    models = [model for model in predictors if str(model.path) in row.models]
    if len(row.class_names) != imagenet.CLASSES or len(models) != 1 or _arch(models[0]) != "D":
        return None
    (model,), trained = models, _training_scale(models[0])
    tune = model.card.recipe.tune if model.card.recipe else ""
    if class_given:
        own_scale = trained in ("256", "384") and row.scales == (int(trained),)
        is_first = row.protocol == "center" and own_scale
        return TABLE_8.get((str(model.boxes), tune)) if is_first else None
    is_best = row.protocol == "dense" and (model.boxes, tune) == ("pcr", "all")
    return TABLE_9.get((trained, row.scales)) if is_best else None


def paper_errors(predictors: Sequence[Predictor], row: Evaluation) -> Errors | None:
    """Return the paper's errors for a row's networks, protocol and scales; None where it has none.

    Only for ImageNet's 1000 classes. A model that does not say how it was trained counts as one
    trained with S in [256, 512], as the published weights were.
    """
    if len(row.class_names) != imagenet.CLASSES:
        return None
    models = [model for model in predictors if str(model.path) in row.models]
    archs = tuple(sorted({_arch(model) for model in models}))
    training_scales = {_training_scale(model) for model in models}
    if len(training_scales) != 1:
        return None
    (trained,) = training_scales
    three = _three_scales(trained)
    if row.protocol == "dense" and len(archs) == 1:
        table = {three: TABLE_4, three[1:2]: TABLE_3}.get(row.scales, {})
        return table.get((archs[0], trained))
    if trained == JITTERED and row.scales == three:
        return TABLES_5_AND_6.get((archs, row.protocol))
    return None


def _arch(model: Predictor) -> str:
    """Return the paper's letter of a model: its recipe's D, or that of the name vgg_d."""
    return model.card.arch.lower().removeprefix("vgg_").upper().replace("_", "-")


def _training_scale(model: Predictor) -> str:
    """Return S as a recipe writes it."""
    return (model.card.recipe and model.card.recipe.scale) or JITTERED


def _three_scales(trained: str) -> tuple[int, ...]:
    """Return the three test scales of a training scale S; () where the paper has none."""
    if trained == JITTERED:
        return 256, 384, 512
    return tuple(int(trained) + d for d in (-32, 0, 32)) if trained.isdigit() else ()
