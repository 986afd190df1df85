"""The spool on a real directory: durable, torn tails, damage, adoption."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from billing import failpoints
from billing.settlement.spool import Spool, SpoolError, encode_record, everybody, read_records
from tests.support.money import cancelled, charge, new_id


@pytest.fixture
def spool(tmp_path: Path) -> Iterator[Spool]:
    made = Spool(tmp_path / "spool", "p1")
    yield made
    made.close()


def test_records_come_back_as_they_went() -> None:
    finishes = [charge(new_id(), 5), cancelled(new_id())]
    content = read_records(b"".join(encode_record(finish) for finish in finishes))
    assert content.finishes == finishes
    assert not content.damaged


def test_a_tail_torn_at_any_byte_loses_only_the_last_record() -> None:
    first, second = encode_record(charge("a", 5)), encode_record(charge("b", 6))
    for cut in range(len(second)):
        content = read_records(first + second[:cut])
        assert [f.event.context.event_id for f in content.finishes] == ["a"]
        assert not content.damaged


def test_a_wrong_byte_anywhere_is_noticed() -> None:
    first, second = encode_record(charge("a", 5)), encode_record(charge("b", 6))
    for at in range(len(first)):
        data = bytearray(first + second)
        data[at] ^= 0x01
        content = read_records(bytes(data))
        found = [f.event.context.event_id for f in content.finishes]
        assert "a" not in found
        assert content.damaged or found == []


async def test_group_is_on_disk_when_append_returns(spool: Spool, tmp_path: Path) -> None:
    finishes = [charge(new_id(), n) for n in range(20)]
    await asyncio.gather(*(spool.append(finish) for finish in finishes))
    (file,) = (tmp_path / "spool").iterdir()
    assert read_records(file.read_bytes()).finishes == finishes
    assert spool.bytes_waiting() == file.stat().st_size
    assert file.stat().st_mode & 0o777 == 0o600
    assert file.parent.stat().st_mode & 0o777 == 0o700


async def test_a_file_sealed_while_it_is_counted_still_waits(
    spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    await spool.append(charge("a", 1))
    counted = spool.bytes_waiting()
    listed = Path.iterdir

    def seal_after_listing(directory: Path) -> Iterator[Path]:
        paths = list(listed(directory))
        for path in paths:
            path.replace(path.with_suffix(".sealed"))
        return iter(paths)

    monkeypatch.setattr(Path, "iterdir", seal_after_listing)
    assert spool.bytes_waiting() == counted > 0


async def test_sealed_files_are_left_until_done(spool: Spool) -> None:
    await spool.append(charge("a", 1))
    (first,) = await spool.seal()
    await spool.append(charge("b", 2))
    both = await spool.seal()
    assert len(both) == 2
    assert first in both
    await spool.done(first, damaged=False)
    (left,) = await spool.seal()
    assert [f.event.context.event_id for f in (await spool.read(left)).finishes] == ["b"]


async def test_a_restart_under_the_same_name_overwrites_nothing(tmp_path: Path) -> None:
    directory = tmp_path / "spool"
    for event_id in ("a", "b", "c"):
        spool = Spool(directory, "p1")
        await spool.append(charge(event_id, 1))
        if event_id == "b":
            await spool.seal()
        spool.close()
    spool = Spool(directory, "p1")
    contents = [await spool.read(path) for path in await spool.seal()]
    assert sorted(f.event.context.event_id for c in contents for f in c.finishes) == [
        "a",
        "b",
        "c",
    ]
    spool.close()


async def test_other_processes_files_only_if_asked_for(spool: Spool, tmp_path: Path) -> None:
    other = Spool(tmp_path / "spool", "p2")
    await other.append(charge("a", 1))
    other.close()
    assert await spool.seal() == []
    assert len(await spool.seal(everybody)) == 1


async def test_a_failed_fsync_is_no_success_and_leaves_good_records(
    spool: Spool, tmp_path: Path
) -> None:
    await spool.append(charge("a", 1))

    def fail() -> None:
        raise OSError(28, "No space left on device")

    failpoints.hooks["spool_unsynced"] = fail
    try:
        with pytest.raises(SpoolError, match="No space left"):
            await spool.append(charge("b", 2))
    finally:
        failpoints.hooks.clear()
    await spool.append(charge("c", 3))
    contents = [await spool.read(path) for path in await spool.seal()]
    assert [f.event.context.event_id for c in contents for f in c.finishes] == ["a", "c"]


async def test_a_directory_that_cannot_be_made_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    spool = Spool(tmp_path / "file" / "spool", "p1")
    with pytest.raises(SpoolError):
        await spool.append(charge("a", 1))
    assert spool.bytes_waiting() == 0
    spool.close()


async def test_a_damaged_file_is_kept_aside(spool: Spool) -> None:
    await spool.append(charge("a", 1))
    (path,) = await spool.seal()
    await spool.done(path, damaged=True)
    assert [p.suffix for p in path.parent.iterdir()] == [".damaged"]
    assert spool.bytes_waiting() == 0


async def test_a_process_name_cannot_leave_the_directory(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool", "../../evil")
    await spool.append(charge("a", 1))
    spool.close()
    assert [path.name for path in tmp_path.iterdir()] == ["spool"]


async def test_files_of_a_process_that_lives_are_left_alone(tmp_path: Path) -> None:
    """Even where the registry thinks it dead: its lock says that it can still write."""
    ours, theirs = Spool(tmp_path / "spool", "p1"), Spool(tmp_path / "spool", "p2")
    await theirs.append(charge("a", 1))
    assert ours.owners() == {"p2"}
    assert await ours.seal(everybody) == []
    theirs.close()
    assert await ours.seal() == []
    (file,) = await ours.seal(lambda process: process == "p2")
    assert [f.event.context.event_id for f in (await ours.read(file)).finishes] == ["a"]
    ours.close()


async def test_a_file_that_one_replays_is_not_another_s(tmp_path: Path) -> None:
    dead = Spool(tmp_path / "spool", "dead")
    await dead.append(charge("a", 1))
    dead.close()
    one, two = Spool(tmp_path / "spool", "p1"), Spool(tmp_path / "spool", "p2")
    (file,) = await one.seal(everybody)
    assert await two.seal(everybody) == []
    await one.done(file, damaged=False)
    assert await two.seal(everybody) == []
    one.close()
    two.close()


async def test_what_a_dying_adopter_left_is_adopted_again(tmp_path: Path) -> None:
    dead = Spool(tmp_path / "spool", "dead")
    await dead.append(charge("a", 1))
    dead.close()
    one, two = Spool(tmp_path / "spool", "p1"), Spool(tmp_path / "spool", "p2")
    assert len(await one.seal(everybody)) == 1
    one.close()
    assert len(await two.seal(everybody)) == 1
    two.close()


async def test_a_process_s_name_may_hold_anything(tmp_path: Path) -> None:
    one, two = Spool(tmp_path / "spool", "a/b.c%"), Spool(tmp_path / "spool", "p2")
    await one.append(charge("a", 1))
    assert two.owners() == {"a/b.c%"}
    one.close()
    two.close()
