"""Which axes of a model are one and the same: derived from its exported graph, never guessed.

Each axis of each tensor is a variable (`axes`). Each operator of the exported graph unifies, factors, concatenates or
pins axes (`rules`, told of by `walk`). While the model is traced, the sizes that its forward pass reads remember what
they were read from (`sizes`, `watch`), so that `x.view(b, self.heads, c // self.heads)` is known to follow its axes and
`x.view(b, 8, 64)` is known not to; all such sizes become constraints, which are solved by pinning (`settle`). What is
left free are the groups (`groups`), which a model can be resized along (`resize`) and tested on (`check`).

The same graph shows the residual branches (`flow`, `branches`), which can be taken out whole (`removal`, `stand_ins`),
as a trial on a copy has shown (`trial`).
"""

from setpoint.wiring.check import check, check_growth
from setpoint.wiring.derive import derive
from setpoint.wiring.explain import explain
from setpoint.wiring.leaves import register_leaf
from setpoint.wiring.removal import Branch, without
from setpoint.wiring.wiring import BRANCHES, Attribute, Group, Pin, Slice, Wiring

__all__ = [
    "BRANCHES",
    "Attribute",
    "Branch",
    "Group",
    "Pin",
    "Slice",
    "Wiring",
    "check",
    "check_growth",
    "derive",
    "explain",
    "register_leaf",
    "without",
]
