"""Operations: those of the dense model, counted by torch; and the figures of the released code."""

import copy
from functools import cache

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transform_nets import IMAGES, SMALL, TOKENS, LanguageModel, Residual, ResNet18, on_meta

from setpoint.budget import count_flops
from setpoint.transforms import iso_flop_counts, sparse_ift

KINDS = ("wide", "parallel", "factorized", "doped")
MODELS = {
    "resnet20": (lambda: on_meta("resnet20"), IMAGES[:1]),
    "vgg16": (lambda: on_meta("vgg16"), IMAGES[:1]),
    "language model": (lambda: LanguageModel().to("meta"), TOKENS[:1]),
}


def counted(model: nn.Module, inputs: torch.Tensor) -> int:
    """As torch itself counts, with the sums of attention spelled out."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        copy.deepcopy(model).to("meta").eval()(inputs.to("meta"))
    return counter.get_total_flops()


@cache
def dense_model(name: str) -> tuple[nn.Module, int]:
    build, inputs = MODELS[name]
    model = build()
    return model, counted(model, inputs)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sparsity", [0.5, 0.75, 0.9])
def test_operations_are_those_of_the_dense_model_and_never_more(name, kind, sparsity):
    (model, dense), inputs = dense_model(name), MODELS[name][1]
    result = sparse_ift(model, kind, sparsity, example_inputs=inputs)
    assert result.dense_flops == dense
    assert result.stored_flops == counted(result.model, inputs)
    # What the scope leaves, weight by weight.
    zeros = [round(la.entries * s) for la, s in zip(result.layers, result.scope.values())]
    flops = result.stored_flops - sum(z * la.flops_per_entry for z, la in zip(zeros, result.layers))
    assert flops == result.flops
    assert 0.99 * dense <= flops <= dense
    # What is left over is less than one entry.
    assert dense - flops < min(la.flops_per_entry for la in result.layers)
    # One density for all, to a few entries.
    densities = [la.kept / la.entries for la in result.layers]
    assert max(densities) - min(densities) < 0.02
    stored = {"doped": 1 + sparsity}.get(kind, 1 / (1 - sparsity))
    assert result.parameters == sum(p.numel() for p in result.model.parameters())
    if name == "vgg16":
        assert result.parameters / result.dense_parameters == pytest.approx(stored, rel=0.01)
        assert result.target.sparsity == pytest.approx(sparsity, abs=5e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_an_entry_takes_part_in_an_addition_and_a_multiplication_at_each_position(kind):
    result = sparse_ift(Residual(), kind, 0.75, example_inputs=SMALL)
    for layer in result.layers:
        positions = 1 if layer.name.startswith("fc1") else 6 * 6
        assert layer.flops_per_entry == 2 * len(SMALL) * positions
        assert layer.shape == tuple(result.model.get_parameter(layer.name).shape)


# Outputs of all batch norms of ResNet-18 on CIFAR, of each of which the released code's profiler counts three MACs.
NORMED = 5 * 64 * 32**2 + 5 * 128 * 16**2 + 5 * 256 * 8**2 + 5 * 512 * 4**2


def test_the_released_codes_figures_for_resnet_18():
    with torch.device("meta"):
        dense, wide = ResNet18(), {width: ResNet18(width) for width in (90, 128, 202)}
    flops, rest = count_flops(dense, IMAGES[:1])
    assert rest == 0
    assert sum(flops.values()) // 2 + 3 * NORMED == 557_312_000
    assert sum(p.numel() for p in dense.parameters()) == 11_220_132
    stored = {width: sum(p.numel() for p in model.parameters()) / 1e6 for width, model in wide.items()}
    assert stored == pytest.approx({90: 22.15, 128: 44.76, 202: 111.35}, abs=6e-3)


@pytest.mark.parametrize(("width", "sparsity"), [(90, 0.5087), (128, 0.7675), (202, 0.9147)])
def test_the_sparsity_that_makes_wide_resnet_18_on_imagenet_cost_the_same(width, sparsity):
    with torch.device("meta"):
        dense, wide = (ResNet18(w, classes=1000, imagenet=True) for w in (64, width))
    image = torch.zeros(1, 3, 224, 224)
    budget, (flops, _) = sum(count_flops(dense, image)[0].values()), count_flops(wide, image)
    names = [name for name in flops if name not in ("conv1.weight", "fc.weight")]
    entries = [wide.get_parameter(name).numel() for name in names]
    kept = iso_flop_counts(
        entries,
        [flops[name] // n for name, n in zip(names, entries)],
        budget - flops["conv1.weight"] - flops["fc.weight"],
    )
    assert 1 - sum(kept) / sum(entries) == pytest.approx(sparsity, abs=1e-4)


def test_the_transformation_finds_the_same():
    with torch.device("meta"):
        dense = ResNet18(classes=1000, imagenet=True)
    result = sparse_ift(dense, "wide", 0.75, example_inputs=torch.zeros(1, 3, 224, 224))
    assert result.target.sparsity == pytest.approx(0.7675, abs=1e-4)
    with torch.device("meta"):
        dense = ResNet18()
    result = sparse_ift(dense, "wide", 0.75, example_inputs=IMAGES[:1])
    assert result.parameters / 1e6 == pytest.approx(44.76, abs=6e-3)
    # The released code counts norms as well, which are twice as many in the wide model, and stops within 0.1 %.
    norms = 3 * NORMED / sum(la.entries * la.flops_per_entry for la in result.layers) * 2
    assert result.target.sparsity + norms == pytest.approx(0.7519, abs=0.25e-3)


def test_the_product_beside_a_doped_layer_stays_dense():
    """The released code masks it: its networks make .747, .439 and .194 of the dense operations."""
    with torch.device("meta"):
        dense = ResNet18()
    for sparsity, released in ((0.5, 0.7468), (0.75, 0.4390), (0.9, 0.1940)):
        result = sparse_ift(dense, "doped", sparsity, example_inputs=IMAGES[:1], exclude="*downsample.0")
        assert not any(la.name.endswith((".u.weight", ".v.weight")) for la in result.layers)
        assert result.flops / result.dense_flops == pytest.approx(1, abs=1e-6)
        flops, _ = count_flops(result.model, IMAGES[:1])
        all_masked = sum(
            n for name, n in flops.items() if "layer." in name or name.endswith((".u.weight", ".v.weight"))
        )
        masked = result.stored_flops - sparsity * all_masked
        assert masked / result.dense_flops == pytest.approx(released, abs=0.03)
