"""Network morphisms (LEMONADE, arXiv 1804.09081, section 3): a child network with its parent's weights.

Exact ones compute what the parent computes: `insert`, `widen`, `convex_skip`, `concat_skip`. Approximate ones begin
close to it: `remove`, `prune`, `make_separable`, `without_skip`. All work on chains of layers (nn.Sequential) that
need not belong to a search space; `hwnas/train/inherit.py` does the same for the architectures of a space.
"""

from hwnas.train.morphisms.insert import identity_layer, insert
from hwnas.train.morphisms.prune import prune
from hwnas.train.morphisms.remove import remove
from hwnas.train.morphisms.separable import make_separable
from hwnas.train.morphisms.skip import concat_skip, convex_skip, without_skip
from hwnas.train.morphisms.widen import widen

__all__ = [
    "concat_skip",
    "convex_skip",
    "identity_layer",
    "insert",
    "make_separable",
    "prune",
    "remove",
    "widen",
    "without_skip",
]
