"""Which layers a user chose, by globs on the names of modules and of their weights."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from setpoint.units import Patterns
from setpoint.units.select import matches, patterns


@dataclass(frozen=True)
class Chosen:
    """What to take and what to leave.

    Attributes:
        include: globs; None for everything.
        exclude: globs.
    """

    include: tuple[str, ...] | None
    exclude: tuple[str, ...]

    @classmethod
    def of(cls, include: Patterns, exclude: Patterns) -> Chosen:
        """Read a glob or several."""
        included = patterns("include", include)
        return cls(None if included is None else tuple(included), tuple(patterns("exclude", exclude) or ()))

    def takes(self, *names: str) -> bool:
        """Whether what goes by these names is chosen."""
        return (self.include is None or matches(names, self.include)) and not self.leaves(*names)

    def leaves(self, *names: str) -> bool:
        """Whether what goes by these names is left on purpose."""
        return matches(names, self.exclude)

    def names(self, *names: str) -> bool:
        """Whether one of these names is given in full."""
        return self.include is not None and any(name in self.include for name in names)

    def check(self, possible: Mapping[str, Iterable[str]]) -> None:
        """Refuse patterns that match nothing.

        Args:
            possible: by a name to show, other names of the same.

        Raises:
            ValueError: naming the pattern, and what is possible.
        """
        for argument, globs in (("include", self.include or ()), ("exclude", self.exclude)):
            for glob in globs:
                if not any(matches([name, *others], [glob]) for name, others in possible.items()):
                    raise ValueError(f"{argument}={glob!r} matches no layer; possible: {', '.join(possible) or 'none'}")
