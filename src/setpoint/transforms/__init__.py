"""Models rewritten before training: larger ones that are to be sparse, for the operations of the dense one."""

from setpoint.transforms.doped import Doped
from setpoint.transforms.factorized import Factorized
from setpoint.transforms.fold import fold
from setpoint.transforms.inner import Inner
from setpoint.transforms.parallel import Parallel
from setpoint.transforms.result import SparseIFT, SparseLayer
from setpoint.transforms.sizes import doped_rank, factorized_rank, parallel_branches, wide_factor, wide_size
from setpoint.transforms.solver import iso_flop_counts
from setpoint.transforms.sparse_ift import Kind, sparse_ift

__all__ = [
    "Doped",
    "Factorized",
    "Inner",
    "Kind",
    "Parallel",
    "SparseIFT",
    "SparseLayer",
    "doped_rank",
    "factorized_rank",
    "fold",
    "iso_flop_counts",
    "parallel_branches",
    "sparse_ift",
    "wide_factor",
    "wide_size",
]
