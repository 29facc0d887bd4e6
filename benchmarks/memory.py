"""Memory: the peak of training with each method beyond the dense model's, and that of projections beyond their input.

On a CPU from the profiler's record of every allocation that torch makes; of projections also the resident set of a
process of their own. On a GPU from the allocator's count.

    python benchmarks/memory.py
    python benchmarks/memory.py --tasks resnet20 --units weight
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from setpoint.bench.memory import projection_memory, step_memory
from setpoint.bench.training import TASKS
from setpoint.methods import method_names
from speed_results import Results, options

ABOUT = (
    "Bytes beyond the dense model's peak as multiples of the parameters' bytes, in the middle of the sparsify phase, "
    "with an update at every step; of projections, bytes beyond the input as multiples of the input's, the answer "
    "included. `in the optimizer's step` is the peak of that part alone, which the activations of the forward pass "
    "may hide; `resident` is the growth of the resident set of a fresh process, kept pages included."
)


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--tasks", nargs="*", choices=list(TASKS), default=list(TASKS))
    parser.add_argument("--units", nargs="+", choices=["weight", "whole"], default=["weight", "whole"])
    parser.add_argument("--methods", nargs="+", default=list(method_names()))
    parser.add_argument("--batch", type=int, help="instead of the task's, to try it out")
    parser.add_argument("--scale", type=float, default=1.0, help="of the projections' sizes, to try it out")
    args = parser.parse_args()
    results = Results("memory", ABOUT, args)
    results.add(partial(projection_memory, results.device, scale=args.scale, resident=True))
    for task in (TASKS[name] for name in args.tasks):
        asked = replace(task, batch=args.batch or task.batch)
        for unit in args.units:
            kind = asked.whole if unit == "whole" else unit
            results.add(partial(step_memory, asked, kind, args.methods, results.device))


if __name__ == "__main__":
    main()
