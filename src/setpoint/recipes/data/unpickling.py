"""Reading a pickle of plain values and NumPy arrays without letting it run anything else."""

import io
import pickle
from typing import Any

import numpy as np

from setpoint.recipes.data.dataset import DataError

# NumPy's own array constructor, found without naming the private module, which moved in NumPy 2.
_RECONSTRUCT = np.empty(0).__reduce__()[0]
_ALLOWED: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("numpy.core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy._core.multiarray", "_reconstruct"): _RECONSTRUCT,
}


class _ArrayUnpickler(pickle.Unpickler):
    def find_class(self, module_name: str, global_name: str, /) -> Any:
        try:
            return _ALLOWED[module_name, global_name]
        except KeyError:
            wanted = f"{module_name}.{global_name}"
            raise pickle.UnpicklingError(f"{wanted} is not allowed; only NumPy arrays and plain values are") from None


def load_arrays(content: bytes, origin: str) -> Any:
    """Unpickle plain values and NumPy arrays; strings written by Python 2 come back as bytes.

    Args:
        content: The pickle.
        origin: Where it came from, for errors.

    Raises:
        DataError: If it names any other class or function, or is damaged.
    """
    try:
        return _ArrayUnpickler(io.BytesIO(content), encoding="bytes").load()
    except (pickle.UnpicklingError, EOFError, ValueError, TypeError, LookupError, AttributeError) as error:
        raise DataError(f"{origin!r} could not be unpickled: {error}") from error
