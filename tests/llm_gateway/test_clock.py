"""Event ids: UUIDs of version 7, in order of time, never the same twice."""

import os
import uuid

from llm_gateway.clock import new_event_id


def test_id_is_uuid_of_version_7() -> None:
    made = uuid.UUID(new_event_id(0x0123_4567_89AB))
    assert (made.version, made.variant) == (7, uuid.RFC_4122)
    assert made.int >> 80 == 0x0123_4567_89AB


def test_text_is_the_canonical_one() -> None:
    text = new_event_id(1_700_000_000_000)
    assert str(uuid.UUID(text)) == text


def test_ids_of_later_milliseconds_sort_later() -> None:
    assert new_event_id(1_700_000_000_000) < new_event_id(1_700_000_000_001)


def test_ids_of_one_millisecond_differ() -> None:
    assert len({new_event_id(1) for _ in range(50_000)}) == 50_000


def test_forked_child_makes_other_ids() -> None:
    new_event_id(1)
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(writing, new_event_id(1).encode())
        os._exit(0)
    os.close(writing)
    os.waitpid(child, 0)
    with os.fdopen(reading) as pipe:
        assert pipe.read() != new_event_id(1)
