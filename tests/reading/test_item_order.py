"""What is guessed to be read next."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dserverfs.reading.item_order import FIRST_WINDOW, MAX_WINDOW, NEIGHBOURHOOD, ItemOrder, Stretch


def read_all(order: ItemOrder, places: list[int]) -> list[int]:
    """Read these places; return all that were to be fetched ahead, in the order of asking."""
    asked: list[int] = []
    for place in places:
        stretch = order.read("dataset", place)
        if stretch is not None:
            asked += range(stretch.first, stretch.first + stretch.length)
    return asked


def test_items_read_in_order_are_asked_for_once_each_and_ahead() -> None:
    asked = read_all(ItemOrder(), [*range(1, 1001)])

    assert asked == [*range(3, asked[-1] + 1)]
    assert 1000 < asked[-1] <= 1001 + MAX_WINDOW


def test_two_items_in_order_begin_with_a_small_window() -> None:
    order = ItemOrder()

    assert order.read("dataset", 7) is None
    assert order.read("dataset", 8) == Stretch(9, FIRST_WINDOW)
    assert order.read("dataset", 9) is None


def test_items_read_in_no_order_ask_for_nothing() -> None:
    assert read_all(ItemOrder(), [500, 20, 900, 310, 40, 700]) == []


def test_same_item_read_again_and_again_asks_for_nothing() -> None:
    assert read_all(ItemOrder(), [5] * 100) == []


def test_directory_read_within_another_does_not_end_the_others_stream() -> None:
    order = ItemOrder()
    read_all(order, [1, 2, 3])

    assert read_all(order, [101, 102, 103])[0] == 103
    assert read_all(order, [*range(4, 20)])[0] == 2 + 1 + FIRST_WINDOW


def test_two_datasets_have_nothing_to_do_with_each_other() -> None:
    order = ItemOrder()
    order.read("one", 1)

    assert order.read("two", 2) is None


def test_what_a_budget_cut_off_is_asked_for_when_half_of_the_rest_is_read() -> None:
    order = ItemOrder()
    order.read("dataset", 1)
    wanted = order.read("dataset", 2)
    assert wanted is not None

    order.limit("dataset", wanted, 4)

    assert order.read("dataset", 3) is None
    stretch = order.read("dataset", 4)
    assert stretch is not None
    assert stretch.first == 7


@pytest.mark.parametrize("last", [1, 3, 40])
def test_items_read_backwards_are_asked_for_once_each_and_ahead(last: int) -> None:
    order = ItemOrder()
    asked: list[int] = []
    for place in range(1000, last - 1, -1):
        stretch = order.read("dataset", place)
        if stretch is not None:
            assert stretch.descending
            asked += reversed(range(stretch.first, stretch.first + stretch.length))

    assert asked == [*range(998, asked[-1] - 1, -1)]
    assert max(0, last - MAX_WINDOW - 1) <= asked[-1] <= last


def test_what_a_budget_cut_off_is_asked_for_backwards_as_well() -> None:
    order = ItemOrder()
    order.read("dataset", 100)
    wanted = order.read("dataset", 99)
    assert wanted == Stretch(99 - FIRST_WINDOW, FIRST_WINDOW, descending=True)

    order.limit("dataset", wanted, 4)

    assert order.read("dataset", 98) is None
    stretch = order.read("dataset", 97)
    assert stretch is not None
    assert stretch.first + stretch.length == 95


def test_neighbourhood_of_which_a_quarter_was_read_in_no_order_is_asked_for_once() -> None:
    order = ItemOrder()
    places = random.Random(1).sample(range(100 * NEIGHBOURHOOD), 60 * NEIGHBOURHOOD)

    asked = Counter(read_all(order, places))

    assert len(asked) > 80 * NEIGHBOURHOOD
    assert sum(asked.values()) < 1.3 * len(asked)


@given(st.lists(st.integers(0, 300), max_size=200))
def test_whatever_is_read_what_is_asked_for_are_places(places: list[int]) -> None:
    order = ItemOrder()
    for place in places:
        stretch = order.read("dataset", place)
        if stretch is not None:
            assert stretch.first >= 0
            assert 0 < stretch.length <= max(MAX_WINDOW, NEIGHBOURHOOD)
            order.limit("dataset", stretch, stretch.length // 2)


def test_order_goes_on_with_items_of_which_it_is_not_known_that_they_are_read() -> None:
    order = ItemOrder()
    read_all(order, [1, 2])
    ahead: list[int] = []
    for place in range(3, 500):
        stretch = order.goes_on("dataset", place)
        if stretch is not None:
            ahead += range(stretch.first, stretch.first + stretch.length)

    assert ahead == [*range(3 + FIRST_WINDOW, ahead[-1] + 1)]
    assert 500 < ahead[-1] <= 501 + MAX_WINDOW


def test_order_does_not_begin_with_such_items_nor_get_a_direction_by_them() -> None:
    order = ItemOrder()
    assert [order.goes_on("dataset", place) for place in range(50)] == [None] * 50
    order.read("dataset", 1)

    assert [order.goes_on("dataset", place) for place in range(50)] == [None] * 50
    assert order.read("dataset", 2) == Stretch(3, FIRST_WINDOW)


def test_forgotten_dataset_begins_anew() -> None:
    order = ItemOrder()
    read_all(order, [1, 2])
    order.forget("dataset")

    assert order.goes_on("dataset", 3) is None
    assert order.read("dataset", 3) is None
