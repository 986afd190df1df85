"""What a first start makes: the first price book, the admin token and, on loopback, a demo account."""

import contextlib
import secrets
import socket
from pathlib import Path
from typing import Final

import msgspec

from billing.accounts import AccountExistsError, Accounts, Grant
from billing.books import BookRefusedError, PriceBooks
from billing.keys import Keys, NewKey
from billing.kinds import KeyKind
from llm_gateway import banner, package_data
from llm_gateway.config import Config
from llm_gateway.credentials import Credentials, read_credentials, write_credentials
from llm_gateway.start import StartError

DEMO_ACCOUNT: Final = "demo"
DEMO_CREDIT: Final = 1_000 * 1_000_000  # micro-credits


class FirstStart(msgspec.Struct, frozen=True, kw_only=True):
    """Where it is made."""

    config: Config
    books: PriceBooks
    accounts: Accounts
    keys: Keys


async def prepare(
    parts: FirstStart, listeners: list[socket.socket]
) -> tuple[Credentials, tuple[str, ...]]:
    """Make what is not there yet; the credentials, admin token included, and what there is to say.

    Raises StartError, or CredentialsError if the file of credentials cannot be used.
    """
    config = parts.config
    notes = await _load_prices(parts)
    data_dir = Path(config.server.data_dir)
    known = read_credentials(data_dir) or Credentials()
    given = config.auth.admin_token
    token = given.reveal() if given else known.admin_token or secrets.token_urlsafe(32)
    demo = Credentials()
    if config.server.loopback:
        demo = known if known.demo_key else await _make_demo(parts)
    admin = config.server.admin_address
    credentials = Credentials(
        url=banner.url_of(config.server.host, listeners[0].getsockname()[1]),
        admin_url=banner.url_of(admin[0], listeners[1].getsockname()[1]) if admin else "",
        admin_token="" if given else token,
        demo_account=demo.demo_account,
        demo_key=demo.demo_key,
    )
    if credentials != known:
        write_credentials(data_dir, credentials)
    return msgspec.structs.replace(credentials, admin_token=token), notes


async def _load_prices(parts: FirstStart) -> tuple[str, ...]:
    """Make sure that the database holds a price book; what there is to say of the file."""
    name = parts.config.pricing.book
    try:
        text = package_data.price_book(name, beside=parts.config.path)
    except OSError as error:
        raise StartError(f"the price book {name} cannot be read ({error.strerror})") from error
    try:
        loaded = await parts.books.load_first(text, actor="serve")
    except BookRefusedError as error:
        first = next(each for each in error.problems if each.level == "error")
        raise StartError(
            f"the price book {name} has errors (line {first.line}: {first.message}); "
            f"`llm-gateway prices lint {name}` lists them all"
        ) from error
    if loaded is None and await parts.books.version_of(text) is None:
        return (f"{name} differs from the price books in the database, which stay in effect",)
    return ()


async def _make_demo(parts: FirstStart) -> Credentials:
    with contextlib.suppress(AccountExistsError):
        await parts.accounts.create(DEMO_ACCOUNT, name="Demo", actor="serve")
    await parts.accounts.grant(
        Grant(event_id="demo:credits", account=DEMO_ACCOUNT, amount=DEMO_CREDIT), actor="serve"
    )
    scenes = tuple(scene.name for scene in parts.config.scenes)
    demo = NewKey(
        kind=KeyKind.USER,
        account=DEMO_ACCOUNT,
        default_scene=scenes[0],
        scenes=scenes,
        description="demo",
    )
    _, token = await parts.keys.create(demo, actor="serve")
    return Credentials(demo_account=DEMO_ACCOUNT, demo_key=token)
