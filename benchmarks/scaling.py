"""How the time of projections grows from 10^4 to 10^8 weights: the slope of log time against log size.

python benchmarks/scaling.py
python benchmarks/scaling.py --sizes 10000 1000000
"""

from __future__ import annotations

from functools import partial

from setpoint.bench.scaling import SIZES, at_size, slopes
from speed_results import Results, options, pace

ABOUT = (
    "At each size, time divided by that of one pass (`torch.dot(w, w)`), timed in turns, on one tensor. Then the slope "
    "of the line of least squares through the logarithms of time and size, and the slopes from each size to the next: "
    "1 is linear; below, what is paid at any size counts."
)


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=list(SIZES))
    args = parser.parse_args()
    results = Results("scaling", ABOUT, args)
    sizes = sorted(set(args.sizes))
    rows = [results.add(partial(at_size, size, results.device, pace(args))) for size in sizes]
    if len(sizes) > 1:
        results.add(partial(slopes, sizes, rows), timed=False)


if __name__ == "__main__":
    main()
