"""A network trained by PhiFlow's `update_weights` on a captured loss of its prediction."""

from __future__ import annotations

from cases.gallery import Kind, check_derivatives, check_values
from phi.torch.flow import *

import phi_hybrid as ph


def landscape():
    return CenteredGrid(lambda pos: math.cos(math.vec_length(pos)), x=8, y=7, bounds=Box(x=(-3, 3), y=(-3, 3)))


def loss(prediction, label):
    return math.l2_loss(prediction - label), prediction


def start():
    labels = rename_dims(landscape().values, spatial, batch)
    return labels * 0.5 + 0.1, labels


KINDS = {"Loss of a prediction": Kind(loss, start, repeats=False)}


def test_values() -> None:
    check_values(KINDS["Loss of a prediction"])


def test_derivatives() -> None:
    check_derivatives(KINDS["Loss of a prediction"])


def test_training_with_the_captured_loss() -> None:
    """Weights after some updates are those of training with the loss itself."""
    points = rename_dims(landscape().points, spatial, batch)
    labels = rename_dims(landscape().values, spatial, batch)

    def trained(of_prediction):
        math.seed(0)
        net = dense_net(2, 1, [8, 8])
        optimizer = adam(net)

        def of_points(x, label):
            return of_prediction(math.native_call(net, x), label)

        for _ in range(3):
            update_weights(net, optimizer, of_points, points, labels)
        return [p.detach() for p in net.parameters()]

    for a, b in zip(trained(ph.capture(loss)), trained(loss)):
        torch.testing.assert_close(a, b, rtol=0, atol=0)
