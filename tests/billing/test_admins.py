"""Admin tokens: shown once, refused everywhere once revoked, and worth nothing to a thief of the database."""

import re
from pathlib import Path

import pytest
from sqlalchemy import select

from billing.admins import (
    RESERVED_NAMES,
    Admin,
    NameTakenError,
    NewAdminToken,
    Permission,
    roles_for,
)
from billing.db.hot import DatabaseUnavailableError
from billing.db.tables import metadata
from billing.kinds import Role
from billing.lists import PageRequest
from tests.support.control import NOON, Control

EVE = NewAdminToken(name="eve", role=Role.FINANCE)


async def test_token_has_256_bits_and_finds_its_admin(plane: Control) -> None:
    made, token = await plane.admins.create(EVE, actor="test")
    assert re.fullmatch(r"lga_[A-Za-z0-9_-]{43}", token)
    assert made.prefix == token[:10]
    assert await plane.other_process().admins.find(token) == Admin(name="eve", role=Role.FINANCE)


async def test_stolen_database_holds_no_token_that_works(plane: Control, tmp_path: Path) -> None:
    _, admin = await plane.admins.create(EVE, actor="test")
    info, key = await plane.keys.create_user("ada", default_scene="chat", actor="test")
    _, _, rotated = await plane.keys.rotate(info.key_id, grace_seconds=60, actor="test")
    async with plane.database.read() as connection:
        rows = [
            " ".join(str(value) for value in row)
            for table in metadata.tables.values()
            for row in await connection.execute(select(table))
        ]
    stolen = " ".join(rows).encode() + b"".join(
        path.read_bytes() for path in tmp_path.rglob("*.db*")
    )
    for token in (admin, key, rotated):
        assert token[:10].encode() in stolen  # the search does find what is there
        assert token.encode() not in stolen
        assert token[10:].encode() not in stolen
    # What is there opens nothing: neither prefixes nor digests are tokens.
    for text in set(re.findall(r"[A-Za-z0-9_-]{10,64}", " ".join(rows))):
        for tried in (text, f"lga_{text}"[:47], f"lgw_{text}"[:47]):
            assert await plane.admins.find(tried) is None
            assert await plane.keys.fetch(tried) is None


async def test_revoked_anywhere_is_refused_everywhere_at_once(plane: Control) -> None:
    made, token = await plane.admins.create(EVE, actor="test")
    other = plane.other_process()
    assert await other.admins.find(token) is not None
    revoked = await plane.admins.revoke(made.token_id, actor="test")
    assert revoked is not None
    assert revoked.revoked_at == NOON
    assert await other.admins.find(token) is None
    plane.clock.tick(60)
    assert await plane.admins.revoke(made.token_id, actor="test") == revoked
    actions = [row.action for row in (await plane.audit.page(PageRequest())).items]
    assert actions == ["admin_token.revoke", "admin_token.create"]


async def test_revoking_no_token_is_none_and_unrecorded(plane: Control) -> None:
    assert await plane.admins.revoke("adm_0", actor="test") is None
    assert (await plane.audit.page(PageRequest())).total == 0


@pytest.mark.parametrize(("later", "good"), [(0, True), (4.999, True), (5, False)])
async def test_token_expires_at_its_moment(plane: Control, later: float, good: bool) -> None:
    new = NewAdminToken(name="eve", role=Role.OWNER, expires_at=NOON + 5_000)
    _, token = await plane.admins.create(new, actor="test")
    plane.clock.tick(later)
    assert (await plane.admins.find(token) is not None) is good


@pytest.mark.parametrize("name", sorted(RESERVED_NAMES))
async def test_names_of_the_audit_trail_are_taken(plane: Control, name: str) -> None:
    with pytest.raises(NameTakenError):
        await plane.admins.create(NewAdminToken(name=name, role=Role.OWNER), actor="test")


@pytest.mark.parametrize("name", ["", "Eve", "-eve", "eve\n", "e" * 65, "e ve", "é"])
async def test_name_that_is_none_is_refused(plane: Control, name: str) -> None:
    with pytest.raises(ValueError, match="a-z"):
        await plane.admins.create(NewAdminToken(name=name, role=Role.OWNER), actor="test")
    assert (await plane.admins.page(PageRequest())).total == 0


async def test_revoked_name_is_not_used_again(plane: Control) -> None:
    made, _ = await plane.admins.create(EVE, actor="test")
    await plane.admins.revoke(made.token_id, actor="test")
    with pytest.raises(NameTakenError):
        await plane.admins.create(EVE, actor="test")


async def test_without_database_nobody_is_refused_as_unknown(plane: Control) -> None:
    _, token = await plane.admins.create(EVE, actor="test")
    async with plane.away():
        with pytest.raises(DatabaseUnavailableError):
            await plane.admins.find(token)
        # Noise asks no database.
        for noise in ("", "lga_", "lgw_" + "x" * 43, "lga_" + "x" * 42):
            assert await plane.admins.find(noise) is None


def test_roles_are_told_by_power() -> None:
    assert roles_for(Permission.GRANTS) == (Role.OWNER, Role.FINANCE)
    assert roles_for(Permission.TOKENS) == (Role.OWNER,)
