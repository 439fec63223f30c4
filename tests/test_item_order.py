"""What is guessed to be read next."""

from __future__ import annotations

from dserverfs.item_order import FIRST_WINDOW, MAX_WINDOW, ItemOrder, Stretch


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
