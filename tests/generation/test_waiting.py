from __future__ import annotations

from QEfficient.generation.places import Place
from QEfficient.generation.request import Request
from QEfficient.generation.waiting import SLACK, Queue


def place(arrival: int, priority: int = 0) -> Place:
    return Place(Request((1,), priority=priority), arrival)


def order(queue: Queue) -> list[Place]:
    found = []
    while (first := queue.first) is not None:
        found.append(first)
        queue.pop()
    return found


def test_priority_then_arrival_whenever_pushed() -> None:
    queue, places = Queue(), [place(0), place(1, 1), place(2), place(3, 1), place(4, -1)]
    for each in places[::-1]:
        queue.push(each)
    assert len(queue) == 5 and order(queue) == [places[n] for n in (1, 3, 0, 2, 4)]
    assert len(queue) == 0


def test_removed_ones_are_passed_over() -> None:
    queue, places = Queue(), [place(n) for n in range(4)]
    for each in places:
        queue.push(each)
    for n in (0, 2, 2):
        queue.remove(places[n].request)
    assert len(queue) == 2 and places[0].request not in queue
    again = Place(places[0].request, 9)
    queue.push(again)
    assert order(queue) == [places[1], places[3], again]


def test_removed_ones_take_no_room() -> None:
    queue = Queue()
    for number in range(1000):
        queue.push(place(number))
    for each in list(queue._waiting)[1:]:
        queue.remove(each)
    assert len(queue._heap) <= SLACK + 2


def test_those_aside_come_when_they_are_called() -> None:
    queue, first, gone, second = Queue(), place(0), place(1), place(2)
    queue.push(first)
    for each in (gone, second):
        queue.push_aside(each, first.request)
    queue.remove(gone.request)
    assert len(queue) == 2 and order(queue) == [first] and second.request in queue
    queue.call(first.request)
    queue.call(first.request)
    assert order(queue) == [second] and not queue._aside
