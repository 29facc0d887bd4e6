"""The run: a sparsifier hangs on an optimizer and takes the model to its target."""

from __future__ import annotations

import copy
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from setpoint.budget import (
    LatencyOfWidths,
    Phase,
    Schedule,
    Scope,
    Shape,
    Target,
    allocate,
    as_scope,
    costs_of,
    in_budgets,
)
from setpoint.claims import claim, release
from setpoint.comparable import comparable
from setpoint.functional.bits import Mask
from setpoint.functional.values import Entries, Values
from setpoint.gates import Gates
from setpoint.hooks import NonFinite, StepHooks, checked_optimizers
from setpoint.inspection import APPLY, Inspection, find_parameters, inspect, listed, present, zero
from setpoint.methods import Method, Units, make_method
from setpoint.moments import graph_kept
from setpoint.norms import NormStatistics
from setpoint.reading import count
from setpoint.report import HOYER_SLACK, BudgetReport, LatencyReport, LayerReport, Report, in_words
from setpoint.run_state import RunCarrier, differing, steps_of, warn_of_missing_state, was_let_go
from setpoint.state_form import check_content, check_form
from setpoint.support import Support
from setpoint.unfinished import CopiedRun, Progress, warn_caller
from setpoint.units import Layer, Patterns, Skipped, Unit, check_model, choose, named_matrices, unit_name, unwrap

# A larger fraction of zeros than this is no accident.
_TELLING = 0.05


class Sparsifier:
    """Train a model to a target sparsity. Constructing it is all the integration there is.

    It hangs on the optimizer's hooks, so it works in any training loop, with gradient accumulation, clipping,
    autocast, gradient scalers, learning-rate schedulers and `torch.compile`. A run goes through three phases: `dense`
    (warm-up), `sparsify` (the budget shrinks along the schedule) and `frozen` (the support is fixed and meets the
    target exactly; the survivors train on). Steps after the last one announced stay frozen. Methods that are sparse
    from the first step on have no dense phase: constructing the sparsifier zeroes what is not in the first support.

    Its state rides in the optimizer's `state_dict()`, so checkpoints that hold the model's and the optimizer's state
    hold the run's. Restore by building the same sparsifier anew and loading both.

    Args:
        model: any module; wrappers of `torch.compile` and DistributedDataParallel are seen through.
        optimizer: holds the parameters to be made sparse; wrappers are seen through. Its kind does not matter, as long
            as zeros last under it, which is tried on a copy: see `setpoint.optimizers.checked_optimizer`.
        method: a short name (`"gsp"`, `"magnitude"`) or an instance of a `setpoint.methods.Method`.
        target: `0.9` means that 90 % of the chosen weights go; `setpoint.Target` says anything else. May be left out
            for N:M patterns, which then go everywhere.
        unit: what becomes zero together: see `setpoint.units.partition`; or, across layers, `"channel"`, `"neuron"`,
            `"head"`, `"layer"` (a residual branch): see `setpoint.units.coupled`.
        scope: who holds a budget: see `setpoint.budget.allocate`.
        steps: how many optimizer steps the run will take.
        schedule: the phases and the path between them, or the name of a path's shape; by default the method's.
        include, exclude: globs on parameter names: see `setpoint.units.select`.
        example_inputs: what the model is called with: a tensor, a tuple of arguments, or a dict of them by name. Needed
            for units that cross layers, whose parts are derived from a forward pass on fake tensors, and for targets in
            FLOPs and milliseconds. For whole layers, copies of the model are run on random numbers in their place.
        floor: units that no layer may lose under any budget.
        nonfinite: what happens on a step whose gradients are not finite: `"skip"` it with a warning, or `"raise"`; or
            leave them `"unchecked"`, so that no step between updates waits for a GPU. Weights that are not finite are
            then told at the next update.

    Raises:
        ValueError: for anything that cannot be done, naming the parameter, what was asked and what is possible.
        TypeError: if the optimizer is none.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer | Sequence[Optimizer],
        *,
        method: str | Method = "gsp",
        target: Target | float | None = None,
        unit: Unit = "weight",
        scope: Scope = "global",
        steps: int,
        schedule: Schedule | Shape | None = None,
        include: Patterns = None,
        exclude: Patterns = None,
        example_inputs: Any = None,
        floor: int = 1,
        nonfinite: NonFinite = "skip",
    ) -> None:
        check_model(model)
        optimizers, model = checked_optimizers(optimizer), unwrap(model)
        self.model = model
        self.method = make_method(method)
        self.target = Target.of(target)
        self.timeline = self.method.timeline(Schedule.of(schedule), steps)
        scope = as_scope(scope)
        selection, self.wiring = choose(model, optimizers, unit, include, exclude, example_inputs)
        rates, whole = costs_of(model, selection.layers, self.wiring, self.target, example_inputs)
        self._allocated = partial(allocate, selection.layers, self.target, scope, floor, rates=rates, whole=whole)
        self._layers, self._budgets = in_budgets(selection.layers, self._allocated())
        # Where the cost is measured.
        self._latency = whole if isinstance(whole, LatencyOfWidths) else None
        self._unit, self._scope, self._floor = unit_name(unit), scope, int(floor)
        self._selection = selection.only(self._layers, "no glob of the scope names it")
        self.method.check(self._layers, self.target, optimizers)
        # Once: there may be weights of as many numbers as the model's.
        self._told = {"name": self.method.name, **comparable(self.method)}
        self._optimizers = optimizers
        self._nonfinite: NonFinite = nonfinite
        self._step = 0
        self._frozen = False
        self._support = Support(self._layers)
        # Of a method that is always sparse: norms of gradients that were masked since, by layer.
        self._felt: list[Entries] | None = None
        # What the method remembers, one for each budget, from the beginning of the sparsify phase.
        self._memories: list[dict[str, Any]] = [{} for _ in self._budgets]
        self._history: list[dict[str, float]] = []
        self._frozen_at = 0
        self._statistics = NormStatistics(model)
        self._averages: list[nn.Module] = []
        self._known = frozenset(name for name, _ in named_matrices(model))
        self._attach()

    def _attach(self) -> None:
        """Take hold of the parameters and of the optimizers, and go on where a state that they have loaded stands."""
        self._gates = Gates(self.model, self._layers) if self.method.gated else None
        claim(self, self._layers)
        self._hooks = StepHooks(
            self._optimizers,
            begin=self._prepare,
            before=self._mask_gradients,
            between=self._support.hold,
            after=self._advance,
            nonfinite=self._nonfinite,
            masking=self._mask_of_gradient,
        )
        parameters = list(self._support.parameters.values())
        self._progress = Progress(self.timeline.steps, parameters)
        try:
            self._carrier = RunCarrier.of(self._first_optimizer)
            found = self._carrier.join(self, self._first_optimizer)
        except ValueError:
            self._hooks.remove()
            release(self)
            raise
        if not found:
            self._start()
        self._progress.watch(self)

    def _start(self) -> None:
        """Begin at step 0."""
        self._warn_if_begun()
        self._begin()
        if self.method.always_sparse:
            self._support.remember_dense()
            self._update()
            self._progress.met = True

    @property
    def _first_optimizer(self) -> Optimizer:
        """That carries the run's state."""
        return next(iter(self._optimizers))

    @property
    def step(self) -> int:
        """Optimizer steps taken so far, skipped ones not counted."""
        return self._step

    @property
    def phase(self) -> Phase:
        """`"dense"`, `"sparsify"` or `"frozen"`."""
        return "frozen" if self._frozen else self.timeline.phase(self._step)

    @property
    def sparsity(self) -> float:
        """Fraction of zeros in the chosen parameters, counted in the model now; of units behind gates, of shut ones."""
        seen = self.inspect()
        return self._zeros(seen.layers, seen.kept)

    @property
    def asked(self) -> float:
        """Fraction of the cost that the schedule asks to be pruned by now."""
        ramp = self.timeline.ramp(self._step)
        return 1.0 - sum(b.fixed + b.room(ramp) for b in self._budgets) / sum(b.total for b in self._budgets)

    @property
    def exact(self) -> bool:
        """Whether the model, as it is now, meets the target exactly."""
        return self._report().exact

    @property
    def masks(self) -> dict[str, Tensor]:
        """By parameter name, True where an entry is kept. All True before the support is known."""
        return self._support.masks

    @property
    def held(self) -> dict[str, nn.Parameter]:
        """By name, the parameters that are made sparse."""
        return dict(self._support.parameters)

    def kept_units(self) -> dict[str, Tensor]:
        """By layer, the numbers of the units that stay, once they are known: int64, ascending, on the CPU."""
        pairs = zip(self._layers, self._support.kept)
        return {layer.name: kept.flatten().nonzero().flatten().cpu() for layer, kept in pairs}

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        """A run of its own on copies of the model and the optimizers, or in a copy of the model alone none."""
        if memo and id(self.model) in memo and not all(id(optimizer) in memo for optimizer in self._optimizers):
            return CopiedRun()
        copied = object.__new__(type(self))
        memo[id(self)] = copied
        copied._optimizers = checked_optimizers([copy.deepcopy(optimizer, memo) for optimizer in self._optimizers])
        copied.model = copy.deepcopy(self.model, memo)
        # A copy of a gated model alone has the gates in its weights.
        for parameter, own in zip(copied.model.parameters(), self.model.parameters()):
            parameter.data.copy_(own.data)
        for name, value in vars(self).items():
            if name not in ("_optimizers", "model", "_gates", "_hooks", "_carrier", "_progress", "_statistics"):
                setattr(copied, name, copy.deepcopy(value, memo))
        copied._statistics = NormStatistics(copied.model)
        copied._attach()
        return copied

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "a Sparsifier is not pickled: save model.state_dict() and optimizer.state_dict(), which holds the run's "
            "state, and build the same Sparsifier anew to resume"
        )

    @property
    def history(self) -> list[dict[str, float]]:
        """At every update of the sparsify phase: the step, the sparsity asked for then, and the method's gauges.

        The first support of a method that is sparse throughout is an update at step 0. A gauge of several budgets is
        their mean, by what each of them counts in all.
        """
        return [dict(row) for row in self._history]

    @torch.no_grad()
    def freeze(self) -> None:
        """Make the final cut now: the support is fixed, exact, and kept for the rest of the run.

        Called by the schedule; call it to end the sparsify phase early. Does nothing if the run is frozen already.

        Raises:
            FloatingPointError: if a weight is NaN or infinite; nothing is changed then.
        """
        if self._frozen:
            return
        factors: dict[int, Tensor] = {}
        for number, budget in enumerate(self._budgets):
            stays = self._final_cut(number)
            factors |= zip(budget.layers, self.method.fold(self._all_units(last=True)[number], stays))
        self._support.keep(_as_mask(factors[i]) for i in range(len(self._layers)))
        self._support.prune(factors)
        if self._gates is not None and self._gates.attached:
            for i in range(len(self._layers)):
                self._gates.fold(i, factors[i])
            self._gates.detach()
        self._support.clear_state(self._optimizers)
        self._frozen, self._frozen_at = True, self._step
        self._memories = [{} for _ in self._budgets]
        self._statistics.restart()
        self._hold()
        self._support.note_empty(self._layers)
        self._support.number_empty()
        self._follow()
        self._progress.met = True

    def _final_cut(self, number: int) -> Sequence[Tensor]:
        """Which units of a budget stay. A budget in milliseconds is checked on a model of the widths that are left."""

        def cut() -> Sequence[Tensor]:
            return self.method.keep(self._all_units(last=True)[number])

        if self._latency is None:
            return cut()
        return self._latency.settle(cut, self._budgets[number].kept)

    @torch.no_grad()
    def mask_gradients(self) -> None:
        """Zero the gradients of what is held at zero, so that a clipping norm counts the survivors only.

        Optional: call it once a step, after the last `backward()` and before clipping. With a gradient scaler, after
        `unscale_`. A method that looks at the gradients of what is gone in this step still gets to see them.
        """
        if self._moves_next:
            self._feel(copy=True)
        self._support.mask_gradients()

    def _feel(self, *, copy: bool) -> None:
        """Note the gradients of all units, for a method that looks at them at the next update."""
        if self.method.sees_gradients:
            self._felt = [layer.gradients(copy=copy) for layer in self._layers]

    def remove(self) -> None:
        """Let go of the optimizer and the parameters. The model stays as it is; zeros are no longer held."""
        self._hooks.remove()
        self._carrier.leave(self, self._first_optimizer)
        if self._gates is not None:
            self._gates.detach()
        self._statistics.stop()
        release(self)
        self._progress.met = True

    @torch.no_grad()
    def inspect(self) -> Inspection:
        """The run's layers as the model has them now, and what differs from what the run left there."""
        support, settles = self._support, self.method.settles(self.target)
        # Another state of the same run holds its Hoyer sparsity by other zeros.
        held = settles and self._holds_hoyer(present(self.model, self._layers))
        seen = inspect(
            self.model, self._layers, support.pruned, support.kept, () if held else support.empty, self._alive
        )
        # Kept units that a projection settles at zero are not there.
        return replace(seen, kept=tuple(map(self._alive, *zip(*enumerate(seen.layers))))) if settles else seen

    @property
    def _has_budget(self) -> bool:
        """Whether zeros were asked for, beside or instead of a Hoyer sparsity."""
        return self.target is None or self.target.has_budget or not isinstance(self._scope, str)

    def report(self) -> Report:
        """What was asked, what is attainable and what has been reached, counted in the model as it is now.

        Warns, once where it is called, if the target is not met yet and steps have been taken.
        """
        self._progress.warn("report() was asked for")
        return self._report()

    def _report(self) -> Report:
        seen = self.inspect()
        left, hoyers = [*self._selection.skipped, *self._joined()], self._hoyers(seen.layers)
        own = {b.layers[0]: b.requested for b in self._budgets if len(b.layers) == 1}
        tensors = {part.name: part.parameter for layer in seen.layers for part in layer.parts}
        return Report(
            method=self.method.name,
            target=in_words(self.target, self._scope),
            unit=self._unit,
            scope=self._scope if isinstance(self._scope, str) else "by name",
            cost="params" if self.target is None else self.target.counted,
            step=self._step,
            steps=self.timeline.steps,
            phase=self.phase,
            layers=tuple(
                LayerReport.of(layer, kept, own.get(i) if self._has_budget else None)
                for i, (layer, kept) in enumerate(zip(seen.layers, seen.kept))
            ),
            budgets=tuple(
                BudgetReport.of(b, self._layers, seen.kept, hoyer, self._hoyer_asked)
                for b, hoyer in zip(self._budgets, hoyers)
            ),
            params=sum(p.numel() for p in tensors.values()),
            params_kept=count(tensors.values()),
            model_params=sum(p.numel() for p in self.model.parameters()),
            left_dense={skipped.name: skipped.reason for skipped in left},
            left_params={skipped.name: skipped.params for skipped in left},
            differences=seen.differences,
            detached=seen.detached,
            hoyer=self._hoyer(hoyers),
            hoyer_asked=self._hoyer_asked,
            latency=self._latency_report(seen.kept),
            skipped_steps=self._hooks.skipped,
        )

    def check(self, what: str) -> None:
        """Warn if the model is not what its run was to make of it.

        Args:
            what: what is about to be done with the model, or was, as the beginning of the warning.

        Warns:
            UnfinishedRunWarning: if the target is not met yet, with step, steps and the likely cause.
            UserWarning: if the model differs from what the run left in it, naming the parameters; or if it does not
                meet the target, as an average of weights may not.
        """
        self._progress.warn(what)
        report = self._report()
        if report.differences:
            warn_caller(f"{what}, but the model is not what the run left: {listed(report.differences)}; {APPLY}")
        elif self._progress.met and not report.exact:
            warn_caller(f"{what}, but it does not meet the target of its run as it is: {report.shortfall}; {APPLY}")

    @torch.no_grad()
    def apply(self, model: nn.Module | None = None) -> None:
        """Set what the run has pruned to zero, in its model or in another that holds the same parameters.

        A Hoyer sparsity that was asked for is reached again in the run's own model, where the method projects to it.

        For weights that were loaded, averaged or written since: the best checkpoint, an average of weights, parameters
        that another optimizer has trained.

        Args:
            model: for instance an average of weights; by default the run's own model.

        Raises:
            ValueError: if the support is not known yet; for a model that lacks a parameter or has it in another shape.
                Nothing is changed then.
        """
        if not self._support.kept:
            raise ValueError(
                f"the run is in its {self.phase} phase, at step {self._step:,} of {self.timeline.steps:,}: which units "
                "are pruned is known once it is frozen; sparsifier.freeze() makes the cut now"
            )
        zero(self.model if model is None else model, self._support.pruned)
        if model is None:
            self._support.clear_state(self._optimizers)
            if self._frozen:
                self._settle(present(self.model, self._layers))
            self._follow()

    def follow(self, averages: nn.Module) -> None:
        """Keep an average of the model's weights as sparse as the model, from the freeze on.

        What is pruned becomes zero in the average as well when the run is frozen, and an average of zeros is zero.

        Args:
            averages: such as `torch.optim.swa_utils.AveragedModel(model)` or another copy that is updated from the
                model's weights; it holds the run's parameters under their names.

        Raises:
            ValueError: if it does not.
        """
        find_parameters(averages, {name: p.shape for name, p in self._support.parameters.items()})
        self._averages.append(averages)
        self._follow()

    def _follow(self) -> None:
        if self._frozen:
            for averages in self._averages:
                zero(averages, self._support.pruned)

    def _joined(self) -> list[Skipped]:
        """Weights that the model has now, and did not have when the run was built."""
        return [
            Skipped(name, "it was not in the model when the run was built", parameter.numel())
            for name, parameter in named_matrices(self.model)
            if name not in self._known
        ]

    def state_dict(self) -> dict[str, Any]:
        """The run's state: plain values and packed masks. The optimizer's `state_dict()` holds the same."""
        return {**self._own_state(), **self._support.state_dict()}

    def _own_state(self) -> dict[str, Any]:
        """All of the state but the support, which takes passes over its masks."""
        return {
            "asked": self._asked(),
            "step": self._step,
            "frozen": self._frozen,
            "frozen_at": self._frozen_at,
            "memories": self._memories,
            "history": self._history,
            "latency": None if self._latency is None else self._latency.state_dict(),
            "norms": {} if self._gates is None else self._gates.norms,
        }

    @property
    def names(self) -> tuple[str, ...]:
        """Of the layers that are made sparse: parameters, or groups of units that cross layers."""
        return tuple(layer.name for layer in self._layers)

    def check_state(self, state: Mapping[str, Any]) -> None:
        """Raise unless a state is of a run that was told to do the same.

        A run that is frozen has met its target: it may go on for more steps than it was told.

        Raises:
            TypeError: for what is no dict.
            ValueError: naming what differs, there and here, or what is missing or damaged.
        """
        check_form(state, (*self._own_state(), *Support.KEYS))
        there, here = state["asked"], self._asked()
        for key, value in here.items():
            if there.get(key) != value and not (key == "schedule" and state["frozen"]):
                was, now = differing(there.get(key), value)
                more = "; resume with the same steps=, once frozen a run may train on" if key == "schedule" else ""
                raise ValueError(f"the state is of another run: {key} was {was} there and is {now} here{more}")
        modules = {name for name, _ in self.model.named_modules()}
        check_content(state, self._layers, len(self._budgets), modules)
        if self._latency is not None:
            self._latency.check_state(state["latency"])

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take a run's state back.

        Raises:
            TypeError: for what is no dict.
            ValueError: if it is no state of a run, or of one that asked for something else; nothing is changed then.
        """
        self.check_state(state)
        if self._latency is not None:
            # What the run was told of this machine decides what stays, and what it asked for as a fraction.
            self._latency.load_state_dict(state["latency"])
            self._layers, self._budgets = in_budgets(self._layers, self._allocated())
        self._support.restore_dense(state)
        self._support.load_state_dict(state)
        self._step, self._frozen = int(state["step"]), bool(state["frozen"])
        self._progress.step = self._step
        self._progress.met = self._frozen or self.method.always_sparse
        self._frozen_at = int(state["frozen_at"])
        self._history = [dict(row) for row in state["history"]]
        self._memories = [
            _placed(memory, self._layers[budget.layers[0]].device)
            for budget, memory in zip(self._budgets, state["memories"])
        ]
        self._felt = None
        if self._gates is not None:
            self._gates.norms = state["norms"]
        # The weights stay as they are: those that belong to this state may be there already, or come later.
        self._begin()
        self._statistics.stop()
        if self._frozen and self._step == self._frozen_at:
            self._statistics.restart()
        self._follow()

    def miss_state(self, steps: int) -> None:
        """Hear that the optimizer was loaded without a state for this run, after so many steps."""
        warn_of_missing_state(f"stays where it is, at step {self._step:,} of {self.timeline.steps:,}", steps)

    def _warn_if_begun(self) -> None:
        """Say that the run begins anew, where it looks as if one had been here."""
        steps = max((steps_of(optimizer.state) for optimizer in self._optimizers), default=0)
        if steps and not was_let_go(self._first_optimizer) and self.sparsity > _TELLING:
            warn_of_missing_state("begins at step 0, though the model has zeros already: they may come back", steps)

    def _asked(self) -> dict[str, Any]:
        """What the run was told to do, to recognise its state by."""
        line = self.timeline
        return {
            "method": self._told,
            "target": comparable(self.target),
            "unit": self._unit,
            # Of several globs that fit a layer, the first counts.
            "scope": self._scope if isinstance(self._scope, str) else [list(pair) for pair in self._scope.items()],
            "floor": self._floor,
            "schedule": [line.schedule.shape, line.begin, line.end, line.interval, line.steps],
            "layers": {layer.name: list(layer.shape) for layer in self._layers},
            "costs": self._shares(),
        }

    def _shares(self) -> dict[str, float]:
        """By layer, what part of its budget's cost a unit is, which may depend on the example inputs."""
        if self._latency is not None:
            return {}  # what was measured is in the state
        numbered = [(i, c, b.total) for b in self._budgets for i, c in zip(b.layers, b.costs)]
        return {self._layers[i].name: float(cost.sum()) / cost.numel() / total for i, cost, total in numbered}

    def _begin(self) -> None:
        """Put the gates of a gated method on the model in the sparsify phase, and take them off outside of it."""
        if self._gates is None:
            return
        if self._gates.attached or self._frozen:
            self._gates.detach()
        if self.phase == "sparsify":
            self._gates.attach()
            self._open(None)

    @torch.no_grad()
    def _prepare(self) -> None:
        """What happens before each step of the run."""
        self._carrier.look(self._first_optimizer)
        if self._gates is not None and self._gates.attached:
            self._open(self._gates)
        if self.method.always_sparse:
            self._support.forget_dense()
            if self._moves_next:
                if self._felt is None:
                    self._feel(copy=False)
                with graph_kept(self._support.parameters.values()):
                    self._update()
                self._felt = None

    @torch.no_grad()
    def _mask_gradients(self, masked: Collection[int] = ()) -> None:
        """What is pruned for good must not move, whatever the optimizer makes of its gradient.

        Args:
            masked: ids of the parameters whose gradients are masked already.
        """
        if self._frozen or self.method.always_sparse:
            self._support.mask_gradients(masked)

    def _mask_of_gradient(self, parameter: Tensor) -> Mask | None:
        """What will be masked in a gradient, where no method looks at it before."""
        held = self._frozen or (self.method.always_sparse and not self._moves_next)
        return self._support.pruned_of(parameter) if held else None

    @property
    def _moves_next(self) -> bool:
        """Whether an update comes before the next step."""
        return self.method.always_sparse and not self._frozen and self.timeline.updates(self._step)

    def _open(self, felt: Gates | None) -> None:
        """Set the gates, having learned from how the loss felt the present ones."""
        assert self._gates is not None
        for units in self._all_units():
            pairs = None if felt is None else felt.felt(units.budget.layers, self._optimizers)
            for i, (sample, test) in zip(units.budget.layers, self.method.gates(units, pairs)):
                self._gates.put(i, sample, test)

    @torch.no_grad()
    def _advance(self) -> None:
        """What happens after each step of the optimizer."""
        self._step += 1
        self._progress.step = self._step
        phase = self.timeline.phase(self._step)
        if self._frozen:
            self._statistics.stop()
            self._hold(masked=True)
            return
        if phase == "frozen":
            self.freeze()
            return
        if phase == "sparsify":
            if self._gates is not None and not self._gates.attached:
                self._begin()
            if self.method.steps:
                for units in self._all_units():
                    self.method.after_step(units)
        if self.timeline.updates(self._step) and not self.method.always_sparse:
            self._update()
        else:
            self._hold(masked=self.method.always_sparse)

    @torch.no_grad()
    def _update(self) -> None:
        gauges: dict[str, float] = {}
        held: dict[int, Tensor | Mask] = {}
        whole = sum(budget.total for budget in self._budgets)
        for units in self._all_units():
            for i, layer, factors in zip(units.budget.layers, units.layers, self.method.factors(units)):
                if factors is not None and self.method.holds:
                    held[i] = factors.tensor() if isinstance(factors, Values) else factors
                # A support that is held from here on is zeroed below, with all that goes with it.
                if factors is not None and not self.method.always_sparse:
                    layer.multiply(factors)
            for key, value in self.method.gauges(units).items():
                gauges[key] = gauges.get(key, 0.0) + value * (units.budget.total / whole)
        self._support.prune(held)
        if self.method.always_sparse:
            self._support.keep(_as_mask(held[i]) for i in range(len(self._layers)))
            self._support.clear_state(self._optimizers)
            self._hold()
        # What is outside of a support that holds has just been zeroed.
        zeros = self._support.share if self.method.always_sparse else self._zeros(self._layers)
        self._history.append({"step": self._step, "asked": self.asked, "zeros": zeros, **gauges})

    def _zeros(self, layers: Sequence[Layer], kept: Sequence[Tensor] = ()) -> float:
        """Fraction of entries that are zero, or of units that are, or behind gates that are shut.

        Where the support may hold zeros, of entries outside of it.

        Args:
            layers: the run's, with the parameters to count in.
            kept: which of their units are there, where that is known; else they are looked at where it takes that.
        """
        parameters = {part.name: part.parameter for layer in layers for part in layer.parts}
        whole = sum(parameter.numel() for parameter in parameters.values())
        gated = self._gates is not None and self._gates.attached
        by_units = [i for i, layer in enumerate(layers) if gated or len(layer.acted_on) < len(layer.parts)]
        if not by_units and not self.method.always_sparse:
            return 1.0 - count(parameters.values()) / whole
        if not by_units:
            return 1.0 - count(self._there(name, parameter) for name, parameter in parameters.items()) / whole
        there = {name: self._there(name, parameter) for name, parameter in parameters.items()}
        known = kept or self._support.kept
        for i, layer in enumerate(layers):
            if i in by_units:
                units = known[i] if known else self._alive(i, layer)
                for part, spread in layer.spread(units.float()):
                    there[part.name] = there[part.name] & (spread != 0)
        return 1.0 - count(there.values()) / whole

    def _there(self, name: str, parameter: Tensor) -> Tensor:
        """Which entries of a parameter count as not zero."""
        pruned = self._support.pruned.get(name) if self.method.always_sparse else None
        there = parameter != 0
        return there if pruned is None else there | ~pruned.tensor().to(there.device)

    def _hold(self, *, masked: bool = False) -> None:
        """Bring back to zero what the optimizer moved; in the frozen phase also settle the survivors.

        Args:
            masked: whether this is after a step for which the gradients were masked.
        """
        self._support.hold(self._optimizers if masked else None)
        if self.method.always_sparse or self._frozen:
            self._support.mask_copies(self._optimizers)
        if self._frozen:
            self._settle(self._layers)

    def _settle(self, layers: Sequence[Layer]) -> None:
        """What a method does to the survivors beyond holding the support."""
        if not self.method.settles(self.target):
            return
        before = self._support.blank(layers)
        for units in self._all_units(last=True, layers=layers):
            for layer, factors in zip(units.layers, self.method.settle(units)):
                if factors is not None:
                    layer.multiply(factors)
        self._support.note_settled(layers, before)

    def _all_units(self, *, last: bool = False, layers: Sequence[Layer] | None = None) -> list[Units]:
        """What a method sees of each budget now, or as if the sparsify phase were over.

        Args:
            last: the latter.
            layers: with the parameters to look at; the run's own by default.
        """
        line, layers = self.timeline, self._layers if layers is None else layers
        return [
            Units(
                layers=tuple(layers[i] for i in budget.layers),
                budget=budget,
                target=self.target,
                optimizers=self._optimizers,
                memory=memory,
                step=self._step,
                ramp=1.0 if last else line.ramp(self._step),
                progress=1.0 if last else line.progress(self._step),
                share=line.interval / (line.end - line.begin),
                elapsed=line.interval,
                kept=self._support.kept.of(budget.layers) if self._support.kept else None,
                felt=None if self._felt is None else tuple(self._felt[i] for i in budget.layers),
            )
            for budget, memory in zip(self._budgets, self._memories)
        ]

    def _alive(self, index: int, layer: Layer) -> Tensor:
        """Which units of a layer are there, by its entries and its gates."""
        alive = layer.alive()
        if self._gates is not None and self._gates.attached:
            alive &= self._gates.open(index).reshape(alive.shape)
        return alive

    def _latency_report(self, kept: Sequence[Tensor]) -> LatencyReport | None:
        if self._latency is None:
            return None
        budget = self._budgets[0]
        predicted = budget.spent([kept[i].cpu() for i in budget.layers])
        return LatencyReport(str(self._latency.device), budget.total, budget.kept, predicted, self._latency.measured)

    @property
    def _hoyer_asked(self) -> float | None:
        return None if self.target is None else self.target.hoyer

    def _hoyers(self, layers: Sequence[Layer]) -> list[float | None]:
        """The average Hoyer sparsity of each budget in these layers, where one was asked for."""
        if self._hoyer_asked is None:
            return [None] * len(self._budgets)
        return [_measured(self.method, units) for units in self._all_units(last=True, layers=layers)]

    def _hoyer(self, hoyers: Sequence[float | None]) -> float | None:
        """The average over the budgets."""
        if self._hoyer_asked is None:
            return None
        values = [(len(budget.layers), hoyer or 0.0) for budget, hoyer in zip(self._budgets, hoyers)]
        return sum(n * v for n, v in values) / sum(n for n, _ in values)

    def _holds_hoyer(self, layers: Sequence[Layer]) -> bool:
        """Whether these layers have the Hoyer sparsity that was asked for, and no more than that."""
        asked = self._hoyer_asked or 0.0
        return all(abs((hoyer or 0.0) - asked) <= HOYER_SLACK for hoyer in self._hoyers(layers))


def _as_mask(factors: Tensor | Mask) -> Tensor | Mask:
    return factors if isinstance(factors, Mask) or factors.dtype is torch.bool else factors != 0


def _measured(method: Method, units: Units) -> float | None:
    try:
        return method.measured(units)
    except FloatingPointError:  # a weight is not finite
        return math.nan


def _placed(memory: Any, device: torch.device) -> Any:
    """A copy of what a method remembers, its tensors on a device."""
    if isinstance(memory, Tensor):
        return memory.to(device, copy=True)
    if isinstance(memory, dict):
        return {key: _placed(value, device) for key, value in memory.items()}
    return [_placed(value, device) for value in memory] if isinstance(memory, list) else memory
