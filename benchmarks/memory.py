"""Memory: the peak of training with each method beyond the dense model's, and that of projections beyond their input.

On a CPU from the profiler's record of every allocation that torch makes; of projections also the resident set of a
process of their own. On a GPU from the allocator's count.

    python benchmarks/memory.py
    python benchmarks/memory.py --tasks resnet20 --units weight
"""

from __future__ import annotations

from functools import partial

from setpoint.bench.memory import projection_memory, step_memory
from speed_results import Results, add_training, options, trainings

ABOUT = (
    "Bytes beyond the dense model's peak as multiples of the parameters' bytes, in the middle of the sparsify phase, "
    "with an update at every step; of projections, bytes beyond the input as multiples of the input's, the answer "
    "included. `in the optimizer's step` is the peak of that part alone, which the activations of the forward pass "
    "may hide; `resident` is the growth of the resident set of a fresh process, kept pages included."
)


def main() -> None:
    parser = options(__doc__)
    add_training(parser)
    parser.add_argument("--scale", type=float, default=1.0, help="of the projections' sizes, to try it out")
    args = parser.parse_args()
    results = Results("memory", ABOUT, args)
    results.add(partial(projection_memory, results.device, scale=args.scale, resident=True))
    for task, unit in trainings(args):
        results.add(partial(step_memory, task, unit, args.methods, results.device))


if __name__ == "__main__":
    main()
