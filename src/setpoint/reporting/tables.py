"""A run's report as tables for the terminal. They take what report.json holds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from setpoint.report_text import cost_words, notes, part_of, units_column, units_counted
from setpoint.reporting.measures import MEASURES
from setpoint.reporting.words import duration, percent, size
from setpoint.units import skipped_in_words


def run_tables(run: Mapping[str, Any]) -> Group:
    """Show a run: what was asked and reached, then layer by layer.

    Args:
        run: the contents of a run's report.json.
    """
    made = run.get("transform") or {}
    # Why the transformation left a weight as it is says more than that the run was not told of it.
    dense = {**run["report"]["left_dense"], **made.get("left_dense", {})}
    report = run["report"]
    about = notes(report["unit"], shared=sum(layer["params"] for layer in report["layers"]) > report["params"])
    about += skipped_in_words(dense, report["left_params"], report["model_params"])
    lines = [Text(line, style="dim") for line in about]
    return Group(Text(_title(run), style="bold"), _header(run), layer_table(report), *lines)


def _title(run: Mapping[str, Any]) -> str:
    config = run["config"]
    options = "".join(f", {key}={value}" for key, value in config["options"].items())
    return (
        f"{_model(config)} on {run['data']}: {config['method']}{options}, unit {config['unit']}, "
        f"scope {run['report']['scope']}, seed {config['seed']}"
    )


def _model(config: Mapping[str, Any]) -> str:
    if config.get("transform", "none") == "none":
        return str(config["model"])
    inner = config.get("transform_inner", "linear")
    kind = config["transform"] if inner == "linear" else f"{config['transform']} ({inner})"
    return f"{config['model']}, {kind} for {100 * config['transform_sparsity']:g} %,"


def _header(run: Mapping[str, Any]) -> Table:
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column()
    for name, value in _facts(run):
        grid.add_row(name, value)
    return grid


def _facts(run: Mapping[str, Any]) -> list[tuple[str, str]]:
    kept, total = run["parameters_kept"], run["parameters"]
    return [
        ("asked", asked(run)),
        *_attainable(run),
        ("achieved", _achieved(run)),
        *_latency(run),
        *(_judged(run, split) for split in ("test", "validation")),
        ("parameters kept", f"{kept:,} of {total:,} ({percent(kept / total)}), biases and norms included"),
        *_transform(run.get("transform")),
        ("size on disk", _sizes(run["dense_bytes"], run["bytes"])),
        ("chosen epoch", f"{run['chosen_epoch']} of {run['config']['epochs']}"),
        ("training", f"{duration(run['seconds'])}, {run['steps_per_second']:,.0f} steps/s"),
    ]


def _transform(made: Mapping[str, Any] | None) -> list[tuple[str, str]]:
    """What a transformed model costs beside the dense one: in operations, and in what dense kernels make of it."""
    if made is None:
        return []
    flops, dense, stored = made["flops"], made["dense_flops"], made["stored_flops"]
    parameters, before = made["parameters"], made["dense_parameters"]
    return [
        ("FLOPs, one example", f"{dense:,} dense, {flops:,} sparse ({percent(flops / dense)})"),
        ("of dense kernels", f"{stored:,} ({stored / dense:.2f} times the dense model's)"),
        (
            "parameters stored",
            f"{before:,} dense, {parameters:,} transformed ({parameters / before:.2f} times)",
        ),
    ]


def asked(run: Mapping[str, Any]) -> str:
    """What a run was asked for, in words."""
    config, report = run["config"], run["report"]
    if config.get("budget") is not None:
        return str(report["target"])
    hoyer = [f"average Hoyer sparsity {config['hoyer']:g}"] if config["hoyer"] is not None else []
    if config["sparsity"] is None and report["scope"] != "by name":
        return hoyer[0] if hoyer else f"all that {config['unit']} allows"
    fraction = report["requested"] if report["scope"] == "by name" else config["sparsity"]
    return ", ".join([f"{100 * fraction:.6g} % of the {cost_words(report['cost'])}", *hoyer])


def _attainable(run: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What whole units allow, where that is something else."""
    return [] if _hoyer_alone(run) else [("attainable", percent(run["report"]["attainable"], 4))]


def _hoyer_alone(run: Mapping[str, Any]) -> bool:
    config = run["config"]
    return config["hoyer"] is not None and config["sparsity"] is None and config.get("budget") is None


def _achieved(run: Mapping[str, Any]) -> str:
    report = run["report"]
    if _hoyer_alone(run):
        return f"Hoyer {report['hoyer']:.6f}, {percent(report['sparsity'])} of the weights zero"
    hoyer = "" if report["hoyer"] is None else f", Hoyer {report['hoyer']:.6f}"
    return f"{percent(report['achieved'], 4)} (exact: {'yes' if report['exact'] else 'no'}){hoyer}"


def _latency(run: Mapping[str, Any]) -> list[tuple[str, str]]:
    found = run["report"].get("latency")
    if found is None:
        return []
    names = ("dense", "requested", "predicted", "measured")
    return [(f"latency on {found['device']}", ", ".join(f"{found[name]:.3f} ms {name}" for name in names))]


def _judged(run: Mapping[str, Any], split: str) -> tuple[str, str]:
    """What the figure of a split is called, and what it is."""
    measure = MEASURES[run["task"]]
    sparse, dense = measure.of(run, split), measure.of(run, f"dense_{split}")
    words = "-" if sparse is None else measure.words(sparse)
    if sparse is not None and dense is not None:
        change = f"{measure.difference(sparse - dense)} {measure.step}"
        words = f"{measure.words(dense)} dense, {words} sparse ({change})"
    return f"{split} {measure.name}", words


def _sizes(dense: int, sparse: int) -> str:
    ratio = f"{dense / sparse:.1f} times smaller" if sparse <= dense else f"{sparse / dense:.1f} times larger"
    return f"{size(dense)} dense, {size(sparse)} sparse ({ratio})"


def layer_table(report: Mapping[str, Any]) -> Table:
    """Show what is left of each layer.

    Args:
        report: of the sparsifier, as plain values.
    """
    unit, column = report["unit"], units_column(report["unit"])
    table = Table(box=box.SIMPLE_HEAD, show_footer=True, pad_edge=False)
    table.add_column("layer", "all", overflow="fold")
    table.add_column("shape")
    if column:
        kept, total = (sum(layer[name] for layer in report["layers"]) for name in ("units_kept", "units"))
        table.add_column(column, units_counted(unit, kept, total), justify="right")
    # Not the sum of the rows: groups of units share weights.
    table.add_column("weights kept", part_of(report["params_kept"], report["params"]), justify="right")
    table.add_column("zeros", percent(report["sparsity"]), justify="right", no_wrap=True)
    for layer in report["layers"]:
        units = [units_counted(unit, layer["units_kept"], layer["units"])] if column else []
        shape = "x".join(str(length) for length in layer["shape"])
        weights = part_of(layer["params_kept"], layer["params"])
        table.add_row(layer["name"], shape, *units, weights, percent(layer["sparsity"]))
    return table
