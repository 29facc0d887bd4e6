"""Projections and proximal maps: time in passes over the weights, and how exactly they reach what was asked.

All works of a case take turns in one process: our functions, torch's sort, topk and kthvalue, the plain implementations
that the tests check ours against, and what other libraries have, where they are installed (setpoint[benchmarks]).

    python benchmarks/projection.py
    python benchmarks/projection.py --cases resnet50 rows --threads 2
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from setpoint.bench import Pace, Row
from setpoint.bench.envelope import envelope, small_groups
from setpoint.bench.inputs import Weights, one_tensor, resnet50, rows
from setpoint.bench.projection import SPARSITY, multiplier, projection
from speed_results import Results, options, pace

from plain import plain_budget, plain_envelope, plain_gsp  # isort: skip - speed_results says where it is

ABOUT = (
    f"Time of each work divided by that of what it is against, timed in turns; {100 * SPARSITY:g} % sparsity. One "
    "pass is `torch.dot(w, w)` summed over the tensors. `off` is how far the answer is from what was asked: in average "
    "Hoyer sparsity, in entries kept, or of the envelope as a fraction of the budget."
)


def on(weights: Weights, pace: Pace) -> list[Row]:
    return projection(weights, pace, plain_gsp=plain_gsp, plain_budget=plain_budget)


def cases(device: torch.device, pace: Pace, scale: float) -> dict[str, Callable[[], Sequence[Row]]]:
    def scaled(count: int) -> int:
        return max(10, round(scale * count))

    def groups(count: int) -> list[Row]:
        return envelope(scaled(count), device, pace, plain=plain_envelope)

    return {
        "resnet50": lambda: on(resnet50(device, scale=scale), pace),
        "resnet50-initial": lambda: on(resnet50(device, scale=scale, initial=True), pace),
        "one": lambda: on(one_tensor(device, scaled(10**8)), pace),
        "rows": lambda: on(rows(device, scaled(2048), 4096), pace),
        "groups": lambda: on(rows(device, scaled(10**6), 9), pace),
        "groups-envelope": lambda: small_groups(rows(device, scaled(10**6), 9), pace),
        "norms-1e5": lambda: groups(10**5),
        "norms-1e7": lambda: groups(10**7),
        "multiplier": lambda: multiplier(Pace(repeats=1000, seconds=pace.seconds)),
    }


def main() -> None:
    parser = options(__doc__)
    names = list(cases(torch.device("cpu"), Pace(), 1.0))
    parser.add_argument("--cases", nargs="+", choices=names, default=names)
    parser.add_argument("--scale", type=float, default=1.0, help="of the sizes, to try it out")
    args = parser.parse_args()
    results = Results("projection", ABOUT, args)
    possible = cases(results.device, pace(args), args.scale)
    for name in args.cases:
        results.add(possible[name])


if __name__ == "__main__":
    main()
