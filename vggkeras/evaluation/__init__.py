"""Test trained models by the paper's protocols (section 3.2) and report errors (section 4)."""

from vggkeras.evaluation.protocols import posteriors as posteriors
from vggkeras.evaluation.scoring import evaluate as evaluate
from vggkeras.evaluation.statistics import Comparison as Comparison
from vggkeras.evaluation.statistics import Evaluation as Evaluation
