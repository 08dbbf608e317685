"""The study of wake control: the rotating cylinder and its drag, its mirror images, and the controller."""

from __future__ import annotations

import pytest
import torch
from control_wake import Case, Controller, controlled
from phi.field import Field
from rotating_cylinder import Cylinder, State

import phi_hybrid as ph

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def case() -> Case:
    return Case(cylinder=Cylinder(cells=16, dt=0.05, hold=1))


@pytest.fixture(scope="module")
def stirred(case: Case) -> State:
    """Not symmetric: after some time of rotation."""
    return ph.repeat(case.physics, case.cylinder.rest(), 24, case.cylinder.rotation())


def native(field: Field) -> list[torch.Tensor]:
    return [torch.as_tensor(field.values[d].numpy("trajectory,x,y")) for d in "xy"]


def test_the_mirror_image_of_a_flow_rotates_the_other_way(case: Case, stirred: State) -> None:
    mirrored, rotation = case.cylinder.mirrored, case.cylinder.rotation()
    image = {name: mirrored(field) for name, field in stirred.items()}
    assert float((native(image["velocity"])[0] - native(stirred["velocity"])[0]).abs().max()) > 0.2
    expected = {name: mirrored(field) for name, field in case.physics(stirred, 0.5 * rotation).items()}
    for name, field in case.physics(image, -0.5 * rotation).items():
        for found, other in zip(native(field), native(expected[name])):
            torch.testing.assert_close(found, other, atol=2e-5, rtol=0)


def test_the_body_turns_at_the_speed_that_is_asked_for(case: Case, stirred: State) -> None:
    after = case.physics(stirred, -0.3 * case.cylinder.rotation())
    assert case.cylinder.rim_speed(native(after["velocity"])[0]).item() == pytest.approx(-0.3, abs=1e-5)


def test_controllers_answer_mirror_images_by_the_opposite_rotation(case: Case, stirred: State) -> None:
    torch.manual_seed(0)
    solver = controlled(case, Controller(case))
    image = {name: case.cylinder.mirrored(field) for name, field in stirred.items()}
    speeds = [
        case.cylinder.rim_speed(native(ph.rollout(solver, s, 1, case.no_rotation)["velocity"].time[1])[0]).item()
        for s in (stirred, image)
    ]
    assert abs(speeds[0]) > 1e-3
    assert speeds[1] == pytest.approx(-speeds[0], abs=1e-5)


def test_drag_in_steady_flow() -> None:
    """5.58 at Re = 20, and no lift, by Schäfer & Turek (1996), whose cylinder is 0.05 off the centre line."""
    cylinder = Cylinder(cells=32, dt=0.05, hold=1, reynolds=20.0)
    state = ph.repeat(ph.capture(cylinder.step()), cylinder.rest(), 160, 0 * cylinder.rotation())
    drag, lift = (cylinder.coefficients(push).item() for push in native(state["push"]))
    assert drag == pytest.approx(5.58, rel=0.04)
    assert abs(lift) < 1e-3
