"""The colours of all figures.

What is ordered (sizes, budgets) is coloured along viridis, what is not takes a colour of Okabe and Ito
(2008): both survive colour blindness, viridis also a grey printer.
"""
import matplotlib
import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, LogNorm

from scaling.laws.solver import Array

BLACK = "#000000"
SKY = "#56B4E9"
GREEN = "#009E73"
BLUE = "#0072B2"
RED = "#D55E00"
PURPLE = "#CC79A7"
ORANGE = "#E69F00"
YELLOW = "#C8B400"                                      # darker than theirs, so that a line can be seen
COLORS = [BLACK, SKY, GREEN, BLUE, RED, PURPLE, ORANGE, YELLOW]
VIRIDIS = ListedColormap(matplotlib.colormaps["viridis"](np.linspace(0, 0.88, 256)))   # no pale yellow
ANY_SIZE = VIRIDIS(0.5)                                 # in a legend, for lines of all shades
LOW_IS_DARK = {"cmap": VIRIDIS.reversed(), "norm": "log"}       # lines of equal loss


def shades(values: Array) -> ScalarMappable:
    """The colours of an ordered quantity, e.g. all sizes of a study."""
    low, high = np.min(values), np.max(values)
    if low == high:
        high = 2 * low
    return ScalarMappable(LogNorm(low, high), VIRIDIS)
