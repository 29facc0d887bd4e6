"""The commands on a finished run or a saved model: compact, measure, export."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from rich.console import Console


@dataclass(frozen=True)
class About:
    """What a file does not say of its model.

    Attributes:
        shape: of one example, where a file does not say it, such as 3x32x32, or 128:int64 for tokens.
        trust: package that may be imported for the classes of a file's model; may be repeated.
    """

    shape: str | None = None
    trust: Annotated[tuple[str, ...], Parameter(negative=(), show_default=False)] = ()


_Asked = Annotated[About, Parameter(name="*")]


def compact(source: Path, *, to: Path | None = None, about: _Asked = About()) -> None:
    """Take out of a model what is zero: fewer parameters, less arithmetic, the same outputs.

    Leaves compact.safetensors and compact.json in a run's folder, or a file beside the one given, and shows what both
    models cost.

    Args:
        source: folder of a finished run with units that cross layers (channel, neuron or head), or a file of a model.
        to: file for the smaller model, where the source is a file; by default its name with .compact in it.
        about: what a file does not say.
    """
    from setpoint.recipes.compacting import compact_file, compact_run
    from setpoint.recipes.measuring import measure_opened
    from setpoint.reporting.costs import costs_table

    if source.is_dir():
        if to is not None:
            raise ValueError(f"the smaller model of a run goes into its folder, {source}; leave --to out")
        Console().print(costs_table(compact_run(source)))
        return
    to = to or source.with_suffix(f".compact{source.suffix}")
    opened = compact_file(source, to, shape=about.shape, trusted=about.trust)
    _tell("model", to)
    Console().print(costs_table(measure_opened(opened)))


def measure(
    source: Path,
    *,
    onnx: Annotated[bool, Parameter(negative=())] = False,
    repeats: int = 30,
    device: str = "cpu",
    about: _Asked = About(),
) -> None:
    """Show what a model costs: parameters, operations, memory, and latency at batches of 1 and 64.

    Of a run: the dense model it began with, the run's model, and the smaller one if its units can be taken out. Leaves
    the figures as JSON, in the run's folder or beside the file.

    Args:
        source: folder of a finished run, or a file of a model.
        onnx: time the models in onnxruntime as well; needs the extra setpoint[export].
        repeats: passes of each model at each batch size, of which the median is shown.
        device: to time on, cpu or cuda.
        about: what a file does not say.
    """
    from setpoint.recipes.measuring import measure_opened
    from setpoint.recipes.opening import open_models
    from setpoint.reporting.costs import costs_table

    opened = open_models(source, shape=about.shape, trusted=about.trust, device=device)
    Console().print(costs_table(measure_opened(opened, repeats=repeats, onnx=onnx)))
    if opened.note:
        _tell("no smaller model", opened.note)
    _tell("figures", opened.costs)


def export(source: Path, *, to: Path, about: _Asked = About()) -> None:
    """Write a model for another runtime, in its smallest form, and check that it computes the same there.

    Args:
        source: folder of a finished run, or a file of a model.
        to: file to write: .onnx, which needs the extra setpoint[export], or .pt2 for a program of torch.export.
        about: what a file does not say.
    """
    from setpoint.recipes.measuring import export_opened
    from setpoint.recipes.opening import open_models

    name = export_opened(open_models(source, shape=about.shape, trusted=about.trust), to)
    _tell("the same outputs as " + ("the model" if name == "model" else f"the {name} model"), to)


def _tell(what: str, about: object) -> None:
    Console().print(f"{what}: {about}", markup=False, highlight=False, soft_wrap=True)
