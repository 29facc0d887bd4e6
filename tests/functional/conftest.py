"""The functions' own tests run on the CPU as it is, and as they would run on a GPU."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from setpoint.functional import device
from setpoint.functional.device import transfer


@pytest.fixture(params=["cpu", "as on a GPU"], scope="module")
def path(request: pytest.FixtureRequest) -> Iterator[None]:
    """Which way the functions take; the second is that of many entries, as few would be sent to the CPU."""
    with pytest.MonkeyPatch.context() as patch:
        if request.param != "cpu":
            patch.setattr(device, "TYPES", {"cpu"})
            patch.setattr(transfer, "FEW", -1)
        yield
