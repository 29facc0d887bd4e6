"""What each method adds to a training step, of ResNet-20 at batch 128 and the byte GPT at batch 16.

Dense model and methods take turns, step by step, in the middle of the sparsify phase: steps between updates, steps with
an update, and steps of the frozen phase.

    python benchmarks/step_overhead.py
    python benchmarks/step_overhead.py --tasks resnet20 --units weight --methods gsp wgsef
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from setpoint.bench.step import step_overhead
from setpoint.bench.training import STEPS, TASKS
from setpoint.methods import method_names
from speed_results import Results, options, pace

ABOUT = (
    "Time of a training step with a method divided by that of the dense step, timed in turns: the mean of the "
    "sparsify phase at the method's default interval. `between` updates, `with an update` and `frozen` are single "
    "steps. Where a method does nothing in the forward and backward pass, what is compared is the optimizer's part of "
    "the step, on top of the dense model's forward and backward pass; `as timed whole` is the ratio of whole steps, "
    "which scatters more."
)


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--tasks", nargs="+", choices=list(TASKS), default=list(TASKS))
    parser.add_argument("--units", nargs="+", choices=["weight", "whole"], default=["weight", "whole"])
    parser.add_argument("--methods", nargs="+", default=list(method_names()))
    parser.add_argument("--steps", type=int, default=STEPS, help="of a run, from which the default interval follows")
    parser.add_argument("--batch", type=int, help="instead of the task's, to try it out")
    args = parser.parse_args()
    results = Results("step_overhead", ABOUT, args)
    for task in (TASKS[name] for name in args.tasks):
        asked = replace(task, batch=args.batch or task.batch)
        for unit in args.units:
            kind = asked.whole if unit == "whole" else unit
            results.add(partial(step_overhead, asked, kind, args.methods, results.device, pace(args), steps=args.steps))


if __name__ == "__main__":
    main()
