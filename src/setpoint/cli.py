"""The command `setpoint`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import App, Parameter
from rich.console import Console

from setpoint.cli_bench import bench
from setpoint.cli_models import compact, export, measure
from setpoint.cli_options import Given, given_values, merge, method_options
from setpoint.writing import is_failure

if TYPE_CHECKING:
    from setpoint.recipes import TrainConfig

# What the machine would not do, such as write to a full disk; what cannot be asked for.
_FAILURE, _MISTAKE, _INTERRUPTED = 1, 2, 130

app = App(
    name="setpoint",
    help="Ask for a sparsity, and training hits it, in one run.",
    version=lambda: version("setpoint"),
    error_formatter=lambda error: f"error: {_one_line(error)}",
    error_console=Console(stderr=True, soft_wrap=True),
)


@app.command
def train(
    out: Path | None = None,
    *,
    config: Path | None = None,
    resume: Annotated[bool, Parameter(negative=(), show_default=False)] = False,
    option: Annotated[list[str], Parameter(negative=(), show_default=False)] = [],  # noqa: B006
    given: Annotated[Given, Parameter(name="*")] = Given(),  # noqa: B008
) -> None:
    """Train a model to a sparsity, beside a dense twin to compare with.

    Without any option: 90 % of a small network on handwritten digits, in a few seconds.

    Args:
        out: folder for the model, its figures and plots; by default one in runs/ that is named after what is asked.
        config: YAML file of options, such as another run's config.yaml; options given here as well win.
        resume: continue the run in the folder.
        option: of the method, as key=value; may be repeated.
        given: what else was given.
    """
    from setpoint.recipes import train_run
    from setpoint.recipes.live import watch
    from setpoint.reporting import run_tables

    asked = merge(given_values(given), {"options": method_options(option)} if option else {})
    settings, folder = _settings(out, config, asked, resume=resume)
    console = Console()
    try:
        with watch(console) as listener:
            result = train_run(settings, folder, resume=resume, progress=listener)
    except KeyboardInterrupt:
        if (folder / "config.yaml").exists():
            _complain(f"interrupted; to go on from the last checkpoint: setpoint train --resume --out {folder}")
        sys.exit(_INTERRUPTED)
    console.print(run_tables(result.to_dict()))
    console.print(f"model, plots and figures: {folder}", highlight=False, soft_wrap=True)


def _settings(out: Path | None, file: Path | None, asked: dict[str, Any], *, resume: bool) -> tuple[TrainConfig, Path]:
    """The config of a run and its folder, of what the folder, the file and the command line say."""
    from setpoint.recipes import TrainConfig, resolve
    from setpoint.recipes.config_file import read_options
    from setpoint.recipes.run_folder import RunFolder, default_folder

    if file is not None:
        asked = merge(read_options(file), asked)
    folder = out or default_folder(resolve(TrainConfig.of(asked)))
    if resume:
        # What it was told holds; what is asked beside it may only repeat it.
        RunFolder(folder).read_config()
        asked = merge(read_options(RunFolder(folder).config), asked)
    return resolve(TrainConfig.of(asked)), folder


@app.command
def report(run: Path) -> None:
    """Show what a run was asked for and what it reached.

    Args:
        run: folder of the run.
    """
    from setpoint.reporting import run_tables

    Console().print(run_tables(_read_run(run)))


@app.command
def compare(*runs: Path, out: Path | None = None) -> None:
    """Compare runs: how good they are against their sparsity, seeds taken together.

    Args:
        runs: folders of runs.
        out: PNG file for a plot.
    """
    from setpoint.reporting import compare_plot, compare_table, group_runs

    if not runs:
        raise ValueError("name the folders of the runs to compare, such as: setpoint compare runs/*")
    if out is not None and out.suffix != ".png":
        raise ValueError(f"--out {out}: the plot is a PNG; name a file that ends in .png")
    groups = group_runs([_read_run(run) for run in runs])
    console = Console()
    console.print(compare_table(groups))
    if out is not None:
        compare_plot(groups, out)
        console.print(f"plot: {out}", highlight=False, soft_wrap=True)


for _command in (compact, measure, export, bench):
    app.command(_command)


@app.command
def analyse(model: str, *, shape: str = "3x32x32", classes: int = 10, width: float = 1.0) -> None:
    """Show which parts of a model can be taken out together, and why others cannot.

    Args:
        model: a name such as resnet20, or package.module:function of a function that makes one without arguments.
        shape: of one example, such as 3x32x32; of a model that is named and takes texts, the number of tokens.
        classes: of a model that is named.
        width: multiplier of the hidden sizes of a model that is named.
    """
    import torch

    from setpoint.recipes.models import build_model, example_input, import_model
    from setpoint.wiring import explain

    sizes = _sizes(shape)
    if ":" in model:
        built, inputs = import_model(model), torch.zeros(1, *sizes)
    else:
        built, inputs = build_model(model, shape=sizes, classes=classes, width=width), example_input(sizes)
    print(explain(built, inputs))  # noqa: T201 - plain text, to be read and piped


def _sizes(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split("x"))
    except ValueError:
        raise ValueError(f"shape={text!r} is no shape such as 3x32x32") from None


def _read_run(folder: Path) -> dict[str, Any]:
    from setpoint.recipes import read_result

    path = folder / "report.json"
    if not path.exists():
        unfinished = (folder / "config.yaml").exists()
        hint = f"it is not finished: setpoint train --resume --out {folder}" if unfinished else "it is no run's folder"
        raise FileNotFoundError(f"{folder} has no report.json; {hint}")
    return read_result(path).to_dict()


@app.meta.default
def _launch(
    *tokens: Annotated[str, Parameter(show=False, allow_leading_hyphen=True)],
    debug: Annotated[bool, Parameter(negative=(), show_default=False)] = False,
) -> None:
    """Run a command.

    Args:
        tokens: of the command.
        debug: show where in the code an error comes from.
    """
    try:
        app(tokens)
    except (ValueError, OSError, ImportError, FloatingPointError) as error:
        if debug:
            raise
        _complain(f"error: {_one_line(error)}")
        sys.exit(_FAILURE if is_failure(error) else _MISTAKE)


def _one_line(error: Exception) -> str:
    text = f"{error.filename}: {error.strerror}" if isinstance(error, OSError) and error.filename else str(error)
    return " ".join(str(text).split())


def _complain(message: str) -> None:
    Console(stderr=True).print(message, markup=False, highlight=False, soft_wrap=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command with the arguments of the process, or with those given."""
    app.meta(arguments)
