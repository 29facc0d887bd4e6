"""Texts as examples: their bytes are the tokens, and the targets of a window are the bytes that follow each of its own.

The last tenth of a text is for testing, and the last tenth of what comes before it for validation.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from setpoint.recipes.data.dataset import DataError, Dataset, Split
from setpoint.recipes.data.download import download_file
from setpoint.recipes.data.files import check_md5, missing_data

CLASSES = tuple(str(byte) for byte in range(256))
# The part of what there is that is held out.
_SHARE = 10


@dataclass(frozen=True)
class TextSet:
    """A published text: where it lies below the data folder, where it comes from, and its checksum."""

    name: str
    path: str
    url: str
    md5: str


TINYSHAKESPEARE = TextSet(
    name="tinyshakespeare",
    path="text/tinyshakespeare.txt",
    url="https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt",
    md5="6fb458f1232090904fb40fe944165e91",
)


def load_text_set(text_set: TextSet, folder: Path, *, context: int, download: bool) -> Dataset:
    """Read a published text, downloading it if it is missing and that is allowed.

    Args:
        text_set: Which one.
        folder: The data folder.
        context: Bytes in a window.
        download: Whether a missing file may be fetched.

    Raises:
        DataError: If the file is missing, cannot be fetched, or is not what was published.
    """
    path = folder / text_set.path
    if not path.is_file():
        if not download:
            raise missing_data(text_set.name, folder, [text_set.path], download=True)
        download_file(text_set.url, path, md5=text_set.md5)
    content = path.read_bytes()
    check_md5(content, text_set.md5, path)
    return divide(text_set.name, content, context)


def load_text(path: Path, *, context: int) -> Dataset:
    """Read a user's own text, in any encoding.

    Args:
        path: Of the file.
        context: Bytes in a window.

    Raises:
        DataError: If the text is too short.
    """
    return divide(path.name, path.read_bytes(), context)


def divide(name: str, content: bytes, context: int) -> Dataset:
    """Divide a text into the three parts, and each of them into windows; no byte is in two parts.

    Args:
        name: Of the data set.
        content: The text.
        context: Bytes in a window, T.

    Returns:
        A data set of shape (T,). A part of n bytes gives (n - 1) // T windows, one after another, so that each byte
        but the first and those of a last incomplete window is a target once. Windows to train on are T - 1 bytes
        longer, so that those of an epoch can begin anywhere in the first T bytes.

    Raises:
        DataError: If ``context`` is not positive, or a part is too short for a window.
    """
    if context < 1:
        raise DataError(f"context={context} was asked for; at least 1 byte is possible")
    text = torch.frombuffer(bytearray(content), dtype=torch.uint8) if content else torch.empty(0, dtype=torch.uint8)
    rest, test = _hold_out(text)
    train, validation = _hold_out(rest)
    # The validation part is the shortest.
    if len(validation) <= context:
        least = (_SHARE * (context + 1) - 1) * _SHARE // (_SHARE - 1) + 1
        raise DataError(
            f"{name}: {len(text)} bytes are too few for context={context}: at least {least}, or a smaller context, are "
            "possible"
        )
    return Dataset(
        name=name,
        train=_windows(train, context, spare=context - 1),
        validation=_windows(validation, context),
        test=_windows(test, context),
        classes=CLASSES,
        shape=(context,),
        mean=(),
        std=(),
        augmentation="shift",
        task="language modelling",
    )


def _hold_out(text: Tensor) -> tuple[Tensor, Tensor]:
    """All but the last tenth, and that."""
    begin = len(text) - len(text) // _SHARE
    return text[:begin], text[begin:]


def _windows(text: Tensor, context: int, *, spare: int = 0) -> Split:
    """Windows that begin every ``context`` bytes and are ``spare`` bytes longer, with the bytes that follow each."""
    # Views of the text: windows that overlap take no memory of their own.
    inputs, targets = (part.unfold(0, context + spare, context) for part in (text[:-1], text[1:]))
    return Split(inputs, targets)
