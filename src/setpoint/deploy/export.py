"""Models for other runtimes: written, and run once beside the original."""

from __future__ import annotations

import logging
import os
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.utils import _pytree

from setpoint.claims import holders
from setpoint.deploy.running import difference, evaluating, outputs_of, rebatch, tensors_in
from setpoint.inputs import call_arguments, failure
from setpoint.overlay import is_gated
from setpoint.units import unwrap
from setpoint.writing import explained

# How far outputs may be apart, by the largest of them in size; and in steps of the outputs' own precision.
_TOLERANCE = 1e-4
_STEPS = 8

Run = Callable[..., list[Tensor]]


def export(model: nn.Module, path: str | os.PathLike[str], example_inputs: Any, *, dynamic_batch: bool = True) -> Path:
    """Write a model for another runtime, in evaluation mode, and check that it computes the same there.

    `model.onnx` becomes an ONNX model, which is run by onnxruntime; `model.pt2` a program of `torch.export`, which
    needs torch but none of the model's code. Both are run on batches of 1 and 3 made of the example inputs. Outputs
    may differ by 1e-4 of the largest entry of each, or by 8 steps of its precision where that is more (half precision).

    Args:
        model: in ordinary modules; compiled and data-parallel ones are seen through.
        path: of the file, `.onnx` or `.pt2`. A file that is there is replaced once the new one is found right.
        example_inputs: as the model is called: a tensor, a tuple of arguments, or a dict of them by name.
        dynamic_batch: leave the size of the first axis of all tensors among the inputs open. Without it the file is for
            inputs of exactly the shapes given.

    Returns:
        The path.

    Raises:
        ValueError: for another kind of file, for a model whose run is in its sparsify phase, for inputs without a
            common batch size, or for a model that cannot be traced, or not with an open batch size.
        ImportError: for ONNX without the packages of the extra `export`.
        RuntimeError: if the outputs differ; nothing is left then.
        FileNotFoundError: if the folder does not exist.
    """
    model, path, inputs = unwrap(model), Path(path), example_inputs
    if path.suffix not in (".onnx", ".pt2"):
        raise ValueError(f"{path} is of no kind that can be written; possible: .onnx (ONNX), .pt2 (torch.export)")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"cannot write {path}: the folder {path.parent} does not exist; create it first")
    _refuse_unfinished(model)
    write, read = (_write_onnx, OnnxModel) if path.suffix == ".onnx" else (_write_program, _read_program)
    if path.suffix == ".onnx":
        _require_onnx()
    program = _trace(model, inputs, dynamic_batch)
    with (
        explained(f"cannot write {path}", beside=path),
        tempfile.TemporaryDirectory(dir=path.parent, prefix=".") as folder,
    ):
        part = Path(folder) / path.name
        write(program, part)
        _check_same(model, read(part), [rebatch(inputs, size) for size in (1, 3)] if dynamic_batch else [inputs], path)
        # Weights of several gigabytes lie in a second file.
        for file in Path(folder).iterdir():
            os.replace(file, path.parent / file.name)
    return path


class OnnxModel:
    """An ONNX model on the CPU, called like the model it was made of, but for arguments that are no tensors.

    Args:
        path: of the file.

    Raises:
        ImportError: without the packages of the extra `export`.
    """

    def __init__(self, path: Path) -> None:
        _require_onnx()
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 3
        self._session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self._names = [entry.name for entry in self._session.get_inputs()]

    def __call__(self, *inputs: Any, **by_name: Any) -> list[Tensor]:
        """The outputs, in order."""
        unnamed = iter(tensors_in(inputs))
        tensors = {name: by_name[name] if name in by_name else next(unnamed) for name in self._names}
        arrays = {name: tensor.detach().cpu().numpy() for name, tensor in tensors.items()}
        return [torch.as_tensor(array) for array in self._session.run(None, arrays)]


def _refuse_unfinished(model: nn.Module) -> None:
    runs = holders(model)
    gated = any(is_gated(module) for module in model.modules())
    if gated or any(run.phase == "sparsify" for run in runs):
        raise ValueError(
            "the model's run is in its sparsify phase, in which its zeros still move: let it reach its frozen phase, "
            "or end the phase by sparsifier.freeze()"
        )
    for run in runs:
        run.check("the model was exported")


def _require_onnx() -> None:
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ImportError(
            f"ONNX needs the packages onnx, onnxscript and onnxruntime ({error}): pip install 'setpoint[export]'"
        ) from error


def _trace(model: nn.Module, inputs: Any, dynamic_batch: bool) -> ExportedProgram:
    shapes = None
    if dynamic_batch:
        sizes = {len(tensor) if tensor.dim() else 0 for tensor in tensors_in(inputs)}
        if len(sizes) != 1 or sizes == {0}:
            raise ValueError(
                f"the tensors among the inputs have the batch sizes {sorted(sizes)}; possible is one that all have, "
                "or dynamic_batch=False"
            )
        # A batch of one is taken for a constant.
        inputs = rebatch(inputs, max(2, *sizes))
        batch = Dim("batch")
        shapes = _pytree.tree_map(lambda leaf: {0: batch} if isinstance(leaf, Tensor) else None, call_arguments(inputs))
    args, kwargs = call_arguments(inputs)
    # By name where there are names, else by position.
    dynamic = None if shapes is None else shapes[1] or shapes[0]
    try:
        with evaluating(model), torch.no_grad(), _quiet():
            return torch.export.export(model, args, kwargs, dynamic_shapes=dynamic)
    except Exception as error:
        hint = "; if its batch size is fixed: dynamic_batch=False" if dynamic_batch else ""
        raise ValueError(
            f"torch.export cannot trace the model with these inputs{hint}: {failure(error, inputs)}"
        ) from error


def _write_onnx(program: ExportedProgram, path: Path) -> None:
    with _quiet():
        made = torch.onnx.export(program, dynamo=True, verbose=False)
        assert made is not None
        made.save(path)


def _write_program(program: ExportedProgram, path: Path) -> None:
    with _quiet():
        torch.export.save(program, path)


def _read_program(path: Path) -> Run:
    with _quiet():
        module = torch.export.load(path).module()
    return torch.no_grad()(lambda *inputs, **by_name: tensors_in(module(*inputs, **by_name)))


def _check_same(model: nn.Module, run: Run, batches: list[Any], path: Path) -> None:
    for inputs in batches:
        args, kwargs = call_arguments(inputs)
        expected, found = outputs_of(model, inputs), run(*args, **kwargs)
        coarsest = max((torch.finfo(t.dtype).eps for t in expected if t.is_floating_point()), default=0.0)
        off, allowed = difference(expected, found), max(_TOLERANCE, _STEPS * coarsest)
        if off > allowed:
            raise RuntimeError(
                f"{path.name} was not written: its outputs differ from the model's by {off:.2g} of their size, and "
                f"{allowed:.2g} is allowed; please report this with the model"
            )


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what exporters say of packages that nobody asked for."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
