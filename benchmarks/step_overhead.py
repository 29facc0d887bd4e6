"""What each method adds to a training step, of ResNet-20 at batch 128 and the byte GPT at batch 16.

Dense model and methods take turns, step by step, in the middle of the sparsify phase: steps between updates, steps with
an update, and steps of the frozen phase.

    python benchmarks/step_overhead.py
    python benchmarks/step_overhead.py --tasks resnet20 --units weight --methods gsp wgsef
"""

from __future__ import annotations

from functools import partial

from setpoint.bench.step import step_overhead
from setpoint.bench.training import STEPS
from speed_results import Results, add_training, options, pace, trainings

ABOUT = (
    "Time of a training step with a method divided by that of the dense step, timed in turns: the mean of the "
    "sparsify phase at the method's default interval. `between` updates, `with an update` and `frozen` are single "
    "steps. Where a method does nothing in the forward and backward pass, what is compared is the optimizer's part of "
    "the step, on top of the dense model's forward and backward pass; `as timed whole` is the ratio of whole steps, "
    "which scatters more."
)


def main() -> None:
    parser = options(__doc__)
    add_training(parser)
    parser.add_argument("--steps", type=int, default=STEPS, help="of a run, from which the default interval follows")
    args = parser.parse_args()
    results = Results("step_overhead", ABOUT, args)
    for task, unit in trainings(args):
        results.add(partial(step_overhead, task, unit, args.methods, results.device, pace(args), steps=args.steps))


if __name__ == "__main__":
    main()
