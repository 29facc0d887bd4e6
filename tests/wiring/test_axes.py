"""The algebra of axes: structures refine each other, and what cannot be refined is pinned."""

import pytest

from setpoint.wiring.axes import Axis, concatenation, describe, pin, product, unify


def sizes(axis: Axis) -> list[int]:
    return [atom.size for atom in axis.atoms()]


def test_two_factorings_meet_in_their_common_refinement():
    first, second = product([Axis(4), Axis(16)]), product([Axis(16), Axis(4)])
    unify(first, second, "")
    assert first.root() is second.root()
    assert sizes(first) == [4, 4, 4]


def test_an_atom_takes_on_the_structure_and_gives_its_pins():
    atom, heads, width = Axis(12), Axis(3), Axis(4)
    pin(atom, "because", "here")
    unify(atom, product([heads, width]), "")
    assert sizes(atom) == [3, 4]
    assert heads.pins == width.pins == {"because": "here"}


@pytest.mark.parametrize("swap", [False, True])
def test_a_concatenation_of_equal_parts_is_a_product(swap):
    queries, keys, heads, width = Axis(12), Axis(12), Axis(3), Axis(4)
    stacked, cut = product([Axis(2), heads, width]), concatenation([queries, keys])
    unify(*((cut, stacked) if swap else (stacked, cut)), "")
    assert queries.root() is keys.root()
    assert sizes(queries) == [3, 4]
    assert next(queries.atoms()) is heads.root()


def test_a_concatenation_meets_groups_across_its_boundary():
    first, second, inside = Axis(8), Axis(4), Axis(4)
    groups = Axis(3)
    unify(concatenation([first, second]), product([groups, inside]), "")
    assert sizes(first) == [2, 4]
    assert [atom.root() for atom in first.atoms()][1] is inside.root() is second.root()


def test_parts_are_cut_at_each_others_ends():
    whole = concatenation([Axis(3), Axis(5)])
    unify(whole, concatenation([Axis(6), Axis(2)]), "")
    assert sizes(whole) == [3, 3, 2]


def test_what_has_no_common_refinement_is_pinned():
    whole, other = product([Axis(6), Axis(4)]), product([Axis(4), Axis(6)])
    unify(whole, other, "some.module")
    for atom in (*whole.atoms(), *other.atoms()):
        assert atom.pins == {"used as 6x4 and as 4x6 at once": "some.module"}


def test_axes_of_different_sizes_are_pinned_not_joined():
    first, second = Axis(2), Axis(3)
    unify(first, second, "")
    assert first.root() is not second.root()
    assert first.pins
    assert second.pins


def test_a_pin_reaches_what_is_split_off_later_but_not_the_other_factor():
    groups, inside = Axis(2), Axis(6)
    whole = product([groups, inside])
    pin(inside, "because", "")
    unify(inside, product([Axis(2), Axis(3)]), "")
    assert [bool(atom.pins) for atom in whole.atoms()] == [False, True, True]


def test_axes_of_one_position_stay_apart():
    first, second = Axis(1), Axis(1)
    pin(unify(first, second, ""), "because", "")
    assert not second.pins


def test_factors_of_one_and_empty_parts_disappear():
    axis = Axis(5)
    assert product([Axis(1), axis]) is axis
    assert concatenation([Axis(0), axis]) is axis


def test_description():
    assert describe(product([Axis(2), concatenation([Axis(3), product([Axis(2), Axis(2)])])])) == "2x(3+2x2)"
