"""The servers of the tests themselves: one that was frozen goes on as a whole."""

from collections.abc import Callable

import pytest

from tests.support import services
from tests.support.services import PostgresServer


def forgetful(all_of_it: Callable[[], list[int]]) -> Callable[[], list[int]]:
    """Leaves the last child out of the first list, as Linux may while another of them ends."""
    asked = 0

    def some() -> list[int]:
        nonlocal asked
        asked += 1
        return all_of_it()[:-1] if asked == 1 else all_of_it()

    return some


def test_who_was_left_out_of_a_list_goes_on_too(
    postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever drops a database waits for each child of the server."""
    url = postgres.new_database()
    postgres.pause()
    monkeypatch.setattr(postgres, "_all", forgetful(postgres._all))
    postgres.resume()
    monkeypatch.setattr(services, "ANSWER_SECONDS", 10.0)
    postgres.drop_database(url)
