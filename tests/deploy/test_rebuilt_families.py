"""Compacted models of every family, made again in a process that never built them, where they train on."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from rebuilding import FAMILIES, TRUSTED, leaves, train

import setpoint
from setpoint.deploy import ArchiveError

TESTS = Path(__file__).parent.parent

# No module of any of these classes may be built there: a model that is loaded comes to be without constructors.
PROGRAM = """
import sys
import torch
from torch import nn
import setpoint
from rebuilding import leaves, train

torch.set_num_threads(1)

def refuse(self, *args, **kwargs):
    raise AssertionError(f"{type(self).__name__} was built")

plain = {nn.Module, nn.Parameter}
folder, trusted, *families = sys.argv[1:]
try:
    if "bert" in families:
        setpoint.load_model(f"{folder}/bert.safetensors")
except setpoint.deploy.ArchiveError as error:
    print(error)

for family in families:
    path = f"{folder}/{family}.safetensors"
    first = setpoint.load_model(path, trusted=trusted.split(","))
    built = {cls for m in first.modules() for cls in type(m).__mro__ if issubclass(cls, nn.Module)} - plain
    constructors = {cls: cls.__init__ for cls in built if "__init__" in vars(cls)}
    for cls in constructors:
        cls.__init__ = refuse
    model = setpoint.load_model(path)
    for cls, constructor in constructors.items():
        cls.__init__ = constructor
    inputs = setpoint.load(f"{folder}/{family}-inputs.safetensors")["x"]
    outputs = {str(i): t for i, t in enumerate(leaves(model.eval(), inputs))}
    setpoint.save(outputs, f"{folder}/{family}-outputs.safetensors")
    train(model, inputs)
    setpoint.save(model.state_dict(), f"{folder}/{family}-trained.safetensors")
"""


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory):
    """A folder where every family was loaded and trained by another process, and the models as they were here."""
    folder = tmp_path_factory.mktemp("families")
    models = {}
    for name, build in FAMILIES.items():
        small, big, inputs = build()
        setpoint.save(small, folder / f"{name}.safetensors")
        setpoint.save({"x": inputs}, folder / f"{name}-inputs.safetensors")
        models[name] = small, big, inputs
    paths = [str(TESTS.parent / "src"), str(TESTS / "deploy"), str(TESTS / "wiring")]
    program = f"import sys\nsys.path[:0] = {paths!r}\n{PROGRAM}"
    command = [sys.executable, "-c", program, str(folder), ",".join(TRUSTED), *models]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder, models, done.stdout


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_travels(name, elsewhere):
    folder, models, _ = elsewhere
    small, big, inputs = models[name]
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in big.parameters())
    shapes = {n: t.shape for n, t in setpoint.load(folder / f"{name}.safetensors").items()}
    assert shapes == {n: t.shape for n, t in small.state_dict().items()}
    found = setpoint.load(folder / f"{name}-outputs.safetensors")
    for i, expected in enumerate(leaves(small.eval(), inputs)):
        assert torch.equal(found[str(i)], expected)
    train(small, inputs)
    trained = setpoint.load(folder / f"{name}-trained.safetensors")
    before = setpoint.load(folder / f"{name}.safetensors")
    for parameter, tensor in small.state_dict().items():
        assert torch.equal(trained[parameter], tensor), parameter
    assert any(not torch.equal(trained[parameter], before[parameter]) for parameter in before)


def test_hugging_face_needs_to_be_trusted_where_it_is_not_imported(elsewhere):
    pytest.importorskip("transformers")
    folder, _, said = elsewhere
    assert "transformers.models.bert.modeling_bert" in said
    assert "trusted=('transformers',)" in said
    assert isinstance(setpoint.load_model(folder / "bert.safetensors"), torch.nn.Module)


def test_a_class_of_the_main_script_needs_that_script(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        f"import sys\nsys.path.insert(0, {str(TESTS.parent / 'src')!r})\n"
        "import torch, setpoint\n"
        "class Net(torch.nn.Linear):\n    pass\n"
        "setpoint.save(Net(2, 2), 'model.safetensors')\n"
        "print(type(setpoint.load_model('model.safetensors')))\n"
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert done.stdout.strip() == "<class '__main__.Net'>"
    with pytest.raises(ArchiveError, match="Net, which was defined in the script that saved it"):
        setpoint.load_model(tmp_path / "model.safetensors")
