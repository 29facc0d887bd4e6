"""A config says all there is to say about a run, in Python and in a file."""

from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch

from setpoint import Target
from setpoint.budget import Schedule
from setpoint.recipes import TrainConfig, dump_config, load_config, resolve

FULL = TrainConfig(
    options={"vectors": "row", "scale_invariant": False},
    sparsity=None,
    unit="2:4",
    scope={"fc1*": 0.5},
    include=("fc*",),
    exclude=("fc3*",),
    begin=10,
    end=1.0,
    lr=1e-5,
)


@pytest.mark.parametrize("config", [TrainConfig(), FULL, TrainConfig(data="cifar10", optimizer="adamw")])
def test_a_file_gives_back_the_resolved_config(config: TrainConfig, tmp_path: Path) -> None:
    dump_config(config, tmp_path / "config.yaml")
    read = load_config(tmp_path / "config.yaml")
    assert read == resolve(config)
    assert resolve(read) == read
    assert [type(getattr(read, f.name)) for f in fields(read)] == [
        type(getattr(resolve(config), f.name)) for f in fields(read)
    ]


def test_nothing_is_left_open_but_the_interval_and_what_was_not_asked_for() -> None:
    resolved = resolve(TrainConfig(data="cifar10", hoyer=0.5))
    assert {f.name for f in fields(resolved) if getattr(resolved, f.name) is None} == {"interval", "budget"}
    assert (resolved.model, resolved.optimizer, resolved.lr) == ("resnet20", "sgd", 0.1)


def test_the_phases_are_the_methods_unless_something_else_is_said() -> None:
    own = resolve(TrainConfig())
    assert (own.schedule, own.begin, own.end) == ("cubic", 0.1, 0.5)
    moving = resolve(TrainConfig(method="rigl"))
    assert (moving.schedule, moving.begin, moving.end) == ("constant", 0, 0.75)
    said = TrainConfig(method="rigl", end=0.5, interval=7)
    assert said.phases == Schedule("constant", 0, 0.5, 7)
    assert resolve(said).phases == said.phases


def test_another_optimizer_does_not_get_the_recipes_rate() -> None:
    assert resolve(TrainConfig(data="cifar10", optimizer="adam")).lr == 1e-3
    assert resolve(TrainConfig(data="cifar10", optimizer="adam", lr=0.5)).lr == 0.5


def test_auto_is_decided_and_a_missing_device_refused() -> None:
    assert resolve(TrainConfig(device="auto")).device == ("cuda" if torch.cuda.is_available() else "cpu")
    with pytest.raises(ValueError, match="device='abacus' is no device"):
        resolve(TrainConfig(device="abacus"))


def test_numbers_are_read_as_in_yaml_1_2(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("unit: 2:4\nlr: 2e-3\nbegin: 0\nend: 1.0\nwidth: .5\nsparsity: null\n")
    config = load_config(path)
    assert (config.unit, config.lr, config.width, config.sparsity) == ("2:4", 2e-3, 0.5, None)
    assert (repr(config.begin), repr(config.end)) == ("0", "1.0")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sparsty: 0.9", "unknown key 'sparsty'; possible are data, model"),
        ("epochs: many", "epochs: .*valid integer.*not 'many'"),
        ("epochs: 1.5", "epochs: .*not 1.5"),
        ("epochs: 0", "epochs=0 must be at least 1"),
        ("sparsity: 1.5", "target sparsity=1.5 must lie strictly between 0 and 1"),
        ("method: nope", "method='nope' is none of "),
        ("options: {colour: red}", "method 'gsp' was given the options colour=red; possible are: measure, vectors"),
        ("lr: -1", "lr=-1.0 must be a number above 0"),
        ("momentum: 1", "momentum=1.0 must lie in"),
        ("optimizer: lbfgs", "optimizer: .*'sgd', 'adam' or 'adamw'"),
        ("begin: 1.5", "schedule begin=1.5"),
        ("- 1", "must hold a mapping"),
        ("a: [", "is no YAML file"),
    ],
)
def test_faults_of_a_file_are_named(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        load_config(path)


@pytest.mark.parametrize("given", [{"hoyer": 0.5}, {"unit": "2:4"}, {"scope": {"fc*": 0.5}}])
def test_the_usual_sparsity_gives_way_to_what_else_says_how_much(given: dict[str, object]) -> None:
    assert TrainConfig.of(given).sparsity is None
    assert TrainConfig.of({**given, "sparsity": 0.4}).sparsity == 0.4
    assert TrainConfig.of({}).sparsity == 0.9


def test_a_target_is_none_where_only_the_pattern_bounds_it() -> None:
    assert TrainConfig(sparsity=None, unit="2:4").target is None
    assert replace(TrainConfig(), hoyer=0.5).target is not None


@pytest.mark.parametrize(
    ("cost", "budget", "target"),
    [
        ("flops", 4e7, Target(flops=40_000_000)),
        ("params", 0.3, Target(params=0.3)),
        ("latency_ms", 5, Target(latency_ms=5)),
        ("latency_ms", 0.5, Target(latency_ms=0.5)),
    ],
)
def test_a_budget_says_what_may_stay(cost, budget, target) -> None:
    assert TrainConfig.of({"cost": cost, "budget": budget}).target == replace(target, cost=cost)


def test_a_budget_and_a_sparsity_are_too_much() -> None:
    with pytest.raises(ValueError, match="takes one budget"):
        TrainConfig.of({"budget": 100, "sparsity": 0.5})


LAUGHS = "a: &a [x, x]\n" + "".join(f"{b}: &{b} [{', '.join(['*' + a] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (LAUGHS.encode(), "anchors and aliases"),
        (b"seed: &s 1\nepochs: *s", "anchors and aliases"),
        (b"options: " + b"[" * 21 + b"]" * 21, "nested more than 20 deep"),
        (b"options: " + b"{a: " * 100_000, "nested more than 20 deep"),
        (b"seed: 1 # " + b"x" * (1 << 20), "larger than 1048576 bytes"),
        (b"seed: \xff", "no text in UTF-8"),
        (b"\x89PNG\r\n\x1a\n\0", "no text in UTF-8"),
        (b"seed: \0", "is no YAML file"),
        (b"", "is empty; it must hold a mapping"),
        (b"# nothing\n", "is empty; it must hold a mapping"),
        (b"text", "must hold a mapping such as .*, not str"),
        (b"1: 2", "must hold a mapping"),
        (b"seed: 1\nseed: 2", "the key 'seed' is there twice"),
        (b"scope: {a: 0.5, a: 0.4}", "the key 'a' is there twice"),
        (b"seed: " + b"9" * 19, "the number 9999999999999999999… has more than 64 bits"),
        (b"epochs: 1" + b"0" * 5000, "has more than 64 bits"),
        (b"scope: {2001-01-01: 0.5}", "no option's value"),
        (b"epochs: 2001-99-99", "is no YAML file"),
        (b"epochs: !!bool x", "is no YAML file"),
        (b"epochs: !!python/object/apply:os.getcwd []", "is no YAML file"),
        (b"seed: " + b"x" * 5000, "not 'x{99}$"),
    ],
    ids=range(21),
)
def test_no_file_takes_more_than_its_size_or_says_more_than_a_sentence(
    content: bytes, message: str, tmp_path: Path
) -> None:
    path = tmp_path / "config.yaml"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        load_config(path)
    assert "\n" not in str(caught.value)


def test_a_folder_is_no_file_of_options(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is a folder; name a YAML file"):
        load_config(tmp_path)


def test_the_largest_whole_number_is_read(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(f"seed: {2**63 - 1}")
    assert load_config(path).seed == 2**63 - 1
