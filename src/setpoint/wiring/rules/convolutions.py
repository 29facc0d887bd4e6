"""Convolutions, pooling, and what rearranges or resamples images."""

from __future__ import annotations

from collections.abc import Sequence

from setpoint.wiring.axes import Axis, pin, product
from setpoint.wiring.calls import Call, Value
from setpoint.wiring.walk import Walk, fresh, rule


def _spatial(call: Call, shape: Sequence[int]) -> list[Axis]:
    return fresh(shape, "a spatial size", call.module)


def _rank(call: Call) -> int:
    """Spatial dimensions, from a name like `conv2d`."""
    return next(int(c) for c in call.name if c in "123")


@rule("conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d", "convolution",
      "_convolution")  # fmt: skip
def convolution(walk: Walk, call: Call) -> Value:
    """Weights are (groups x outputs, inputs, taps), with the two channel axes exchanged in transposed ones."""
    value, weight, bias = call["input"], call["weight"], call["bias"]
    transposed = "transpose" in call.name or bool(call.arguments.get("transposed", False))
    spatial = len(weight.axes) - 2
    channel = len(value.axes) - spatial - 1
    pin(weight.axes[2:], "kernel", call.module)
    pin(value.axes[channel + 1 :], "a convolution runs along it", call.module)
    outer, inner, given = weight.axes[0], weight.axes[1], call["groups"]
    inputs = value.axes[channel]
    shared: list[Axis] = []
    if given == 1:
        consumed, produced = (outer, inner) if transposed else (inner, outer)
        walk.unify(call, inputs, consumed)
        outputs = produced
    else:
        groups, inside = Axis(given), Axis(outer.size // given)
        walk.size(call, groups, given, "number of groups written as a number")
        walk.unify(call, outer, product([groups, inside]))
        consumed, produced = (inside, inner) if transposed else (inner, inside)
        walk.unify(call, inputs, product([groups, consumed]))
        outputs = product([groups, produced])
        shared.append(groups)
    walk.use(call, weight, [*shared, produced], "produces")
    walk.use(call, weight, [consumed], "consumes")
    if not weight.origin:
        pin(consumed, "two activations are multiplied and summed over it", call.module)
    if bias is not None:
        walk.unify(call, outputs, bias.axes[0])
        walk.use(call, bias, bias.axes, "produces")
    return Value((*value.axes[:channel], outputs, *_spatial(call, call.shape[channel + 1 :])))


@rule(*(f"{kind}{n}d{end}" for n in "123" for kind, end in (
    ("max_pool", ""), ("avg_pool", ""), ("adaptive_avg_pool", ""), ("adaptive_max_pool", ""), ("lp_pool", ""),
    ("max_pool", "_with_indices"), ("_adaptive_avg_pool", ""), ("reflection_pad", ""), ("replication_pad", ""),
    ("fractional_max_pool", ""))))  # fmt: skip
def pool(walk: Walk, call: Call) -> Value | tuple[Value | None, ...]:
    """Each channel alone."""
    value, n = call.first, _rank(call)
    pin(value.axes[-n:], f"{call.name!r} runs along it", call.module)
    result = Value((*value.axes[:-n], *_spatial(call, call.shape[-n:])))
    return tuple(result for _ in call.outputs) if call.several else result


@rule("upsample_nearest1d", "upsample_nearest2d", "upsample_nearest3d", "upsample_bilinear2d", "upsample_linear1d",
      "upsample_bicubic2d", "upsample_trilinear3d", "_upsample_nearest_exact1d", "_upsample_nearest_exact2d",
      "_upsample_bilinear2d_aa", "_upsample_bicubic2d_aa", "_upsample_nearest_exact3d", "grid_sampler",
      "grid_sampler_2d")  # fmt: skip
def resample(walk: Walk, call: Call) -> Value:
    """Each channel alone, batch and channels first."""
    pin(call.first.axes[2:], f"{call.name!r} runs along it", call.module)
    return Value((*call.first.axes[:2], *_spatial(call, call.shape[2:])))


@rule("pad", "constant_pad_nd")
def pad(walk: Walk, call: Call) -> Value:
    """Axes that become longer or shorter may not change."""
    value = call.first
    amounts = list(call["pad"])
    axes = list(value.axes)
    for i in range(len(amounts) // 2):
        if amounts[2 * i] or amounts[2 * i + 1]:
            d = len(axes) - 1 - i
            pin(axes[d], "padding on this axis", call.module)
            (axes[d],) = fresh([call.shape[d]], "padding on this axis", call.module)
    return value.moved(axes)


@rule("pixel_shuffle", "pixel_unshuffle")
def pixel_shuffle(walk: Walk, call: Call) -> Value:
    """Channels are (channels, r, r) on the side with the smaller image."""
    value = call.first
    factor = call["upscale_factor"] if call.name == "pixel_shuffle" else call["downscale_factor"]
    channel = len(value.axes) - 3
    inside = fresh([factor, factor], "pixel shuffle", call.module)
    pin(value.axes[-2:], f"{call.name!r} runs along it", call.module)
    if call.name == "pixel_shuffle":
        channels = Axis(call.shape[channel])
        walk.unify(call, value.axes[channel], product([channels, *inside]))
    else:
        channels = product([value.axes[channel], *inside])
    return value.moved((*value.axes[:channel], channels, *_spatial(call, call.shape[-2:])))


@rule("channel_shuffle", "native_channel_shuffle")
def channel_shuffle(walk: Walk, call: Call) -> Value:
    """(groups, channels) become (channels, groups)."""
    value, given = call.first, call["groups"]
    groups, inside = Axis(given), Axis(value.axes[1].size // given)
    walk.size(call, groups, given, "number of groups written as a number")
    walk.unify(call, value.axes[1], product([groups, inside]))
    return value.moved((value.axes[0], product([inside, groups]), *value.axes[2:]))
