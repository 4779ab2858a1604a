"""Features of images (Appendix B), and what is done with them: a linear SVM, nearest neighbours."""

from vggkeras.features.extraction import Described as Described
from vggkeras.features.extraction import describe as describe
from vggkeras.features.extraction import extract_features as extract_features
from vggkeras.features.extraction import load_images as load_images
from vggkeras.features.neighbours import nearest as nearest
from vggkeras.features.svm import SvmRecall as SvmRecall
from vggkeras.features.svm import class_recalls as class_recalls
from vggkeras.features.svm import fit_svm as fit_svm
from vggkeras.features.svm import svm_recall as svm_recall
