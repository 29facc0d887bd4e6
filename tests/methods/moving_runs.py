"""Runs of methods that are sparse throughout."""

from torch import nn

import setpoint
from setpoint.methods import RigL, SparseEvolutionaryTraining

from nets import build

MOVING = {"set": SparseEvolutionaryTraining, "rigl": RigL}


def schedule(end=30, interval=3):
    return setpoint.Schedule("constant", begin=0, end=end, interval=interval)


def sparsify(method, net="mlp", optimizer="sgd", target=0.8, steps=40, end=30, interval=3, **more):
    model, opt, batch = build(net, optimizer)
    made = setpoint.methods.make_method(method) if isinstance(method, str) else method
    sparsifier = setpoint.Sparsifier(
        model, opt, method=made, target=target, steps=steps, schedule=schedule(end, interval), **more
    )
    return model, opt, batch, sparsifier


def backward(model, batch, step):
    inputs, targets = batch(step)
    model.zero_grad()
    nn.functional.cross_entropy(model(inputs), targets).backward()
