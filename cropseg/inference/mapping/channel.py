"""A bounded queue between threads that can be ended and closed.

The standard queue gets `shutdown` with Python 3.13. Here a thread that waits is woken
when the other side is gone, so that an error or Ctrl-C leaves no thread behind.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from typing import Generic, TypeVar

T = TypeVar("T")


class ClosedError(Exception):
    """Nobody is on the other side any more."""


class Channel(Generic[T]):
    """Passes items from threads to others, in order, some at a time.

    Example:
        >>> channel = Channel(max_items=2)
        >>> channel.put("first")
        >>> channel.end()
        >>> list(channel)
        ['first']
    """

    def __init__(self, *, max_items: int) -> None:
        """Begin with nothing in it.

        Args:
            max_items: With so many in it, `put` waits.
        """
        self._max_items = max_items
        self._items: deque[T] = deque()
        self._changed = threading.Condition()
        self._is_ended = False
        self._is_closed = False

    def put(self, item: T) -> None:
        """Add an item, as soon as there is room.

        Raises:
            ClosedError: If it was ended or closed.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._has_room or self._is_over)
            if self._is_over:
                raise ClosedError
            self._items.append(item)
            self._changed.notify_all()

    def get(self, timeout_s: float | None = None) -> T:
        """Take the oldest item, as soon as there is one.

        Args:
            timeout_s: How long to wait, in seconds; None for as long as it takes.

        Raises:
            ClosedError: If it was closed, or it was ended and nothing is left.
            TimeoutError: If nothing came.
        """
        with self._changed:
            if not self._changed.wait_for(
                lambda: self._items or self._is_over, timeout_s
            ):
                raise TimeoutError
            if self._is_closed or not self._items:
                raise ClosedError
            item = self._items.popleft()
            self._changed.notify_all()
            return item

    def end(self) -> None:
        """Say that no more is put. What is in it can still be taken."""
        with self._changed:
            self._is_ended = True
            self._changed.notify_all()

    def close(self) -> None:
        """Drop what is in it, and let nobody wait for more."""
        with self._changed:
            self._is_closed = True
            self._items.clear()
            self._changed.notify_all()

    def __iter__(self) -> Iterator[T]:
        """Take items until it is ended and empty, or closed."""
        while True:
            try:
                yield self.get()
            except ClosedError:
                return

    @property
    def _has_room(self) -> bool:
        return len(self._items) < self._max_items

    @property
    def _is_over(self) -> bool:
        return self._is_ended or self._is_closed
