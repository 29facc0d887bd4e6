"""Varying training images without changing their class, a whole batch at once."""

import torch
from torch import Tensor
from torch.nn import functional

_PADDING = 4


def flip_crop(images: Tensor, generator: torch.Generator) -> Tensor:
    """Mirror each image with probability 1/2, pad it with 4 black pixels, and crop its size anywhere from that.

    Args:
        images: Shape (N, C, H, W), any dtype and device, not normalised (so that 0 is black).
        generator: A CPU generator: the draws are the same whatever device the images are on.

    Returns:
        A new tensor of the same shape, dtype and device.
    """
    count, _, height, width = images.shape
    mirrored = torch.randint(2, (count, 1, 1, 1), generator=generator).bool()
    offsets = torch.randint(2 * _PADDING + 1, (2, count), generator=generator)
    mirrored, offsets = mirrored.to(images.device), offsets.to(images.device)
    images = torch.where(mirrored, images.flip(3), images)
    padded = functional.pad(images, (_PADDING,) * 4)
    # A view of every possible crop, of which one an image is then copied.
    crops = padded.unfold(2, height, 1).unfold(3, width, 1)
    return crops[torch.arange(count, device=images.device), :, offsets[0], offsets[1]]
