"""Queues between threads: in order, bounded, and nobody waits for ever."""

from __future__ import annotations

import threading
import time

import pytest

from cropseg.inference.mapping.channel import Channel, ClosedError


def start(function, *arguments):
    thread = threading.Thread(target=function, args=arguments, daemon=True)
    thread.start()
    return thread


def test_items_come_in_order_until_the_end():
    channel = Channel(max_items=2)
    thread = start(lambda: [*map(channel.put, range(9)), channel.end()])
    assert list(channel) == list(range(9))
    thread.join(5)


def test_no_more_than_its_bound_is_ever_in_it():
    channel = Channel(max_items=3)
    put = []
    thread = start(lambda: [put.append(channel.put(i)) for i in range(5)])
    time.sleep(0.2)
    assert len(put) == 3
    assert channel.get() == 0
    assert channel.get() == 1
    thread.join(5)
    assert not thread.is_alive()


def test_what_is_in_it_when_it_ends_can_be_taken_and_nothing_put():
    channel = Channel(max_items=2)
    channel.put("last")
    channel.end()
    with pytest.raises(ClosedError):
        channel.put("too late")
    assert channel.get() == "last"
    with pytest.raises(ClosedError):
        channel.get()


def test_what_is_in_it_when_it_is_closed_is_dropped():
    channel = Channel(max_items=2)
    channel.put("dropped")
    channel.close()
    with pytest.raises(ClosedError):
        channel.get()
    assert list(channel) == []


@pytest.mark.parametrize("leave", [Channel.end, Channel.close])
@pytest.mark.parametrize("waits_for", ["room", "an item"])
def test_who_waits_is_woken_when_the_other_side_leaves(leave, waits_for):
    channel = Channel(max_items=1)
    woken = []

    def wait():
        try:
            channel.put(2) if waits_for == "room" else channel.get()
        except ClosedError:
            woken.append(True)

    if waits_for == "room":
        channel.put(1)
    thread = start(wait)
    time.sleep(0.1)
    leave(channel)
    thread.join(5)
    assert woken == [True]


def test_who_waits_no_longer_than_a_while_is_told():
    with pytest.raises(TimeoutError):
        Channel(max_items=1).get(0.01)
