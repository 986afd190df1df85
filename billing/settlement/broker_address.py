"""Pure: where a broker is and how to enter it, read from one address.

Query parameters are optional:

    kafka://host:9092,other:9092?partitions=12&replication=3        kafkas:// for TLS
    kafkas://user:password@host:9093?mechanism=SCRAM-SHA-512&ca=/etc/ssl/kafka-ca.pem
    redis://:password@host:6379/1                                   rediss:// for TLS
    rediss://user:password@host:6380/1?ssl_ca_certs=/etc/ssl/redis-ca.pem
"""

import re
from typing import Final, Literal
from urllib.parse import parse_qs, unquote, urlsplit

import msgspec

PARTITIONS: Final = 12  # as many workers can share the topic
MECHANISMS: Final = ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512")

_SERVER: Final = re.compile(r"(?:\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+):([0-9]{1,5})")
_KAFKA_EXPECTED: Final = (
    'expected "kafka://HOST:PORT" or "kafkas://..." for TLS, more servers after a comma'
)
_REDIS_EXPECTED: Final = 'expected "redis://HOST:PORT/0" or "rediss://..." for TLS'


class BrokerAddressError(ValueError):
    """An address that no broker can be reached by; the message repeats nothing of it."""


class KafkaAddress(msgspec.Struct, frozen=True, kw_only=True):
    """A Kafka cluster; `repr` shows no password."""

    servers: tuple[str, ...]
    tls: bool
    ca: str  # file with the certificate authority; "": the system's
    user: str
    password: str
    mechanism: str
    partitions: int  # of topics that are made here
    replication: int

    def __repr__(self) -> str:
        return f"KafkaAddress({','.join(self.servers)})"


def parse_kafka(url: str) -> KafkaAddress:
    """Read a kafka:// or kafkas:// address; raises BrokerAddressError."""
    scheme, separator, rest = url.partition("://")
    if not separator or scheme not in ("kafka", "kafkas"):
        raise BrokerAddressError(_KAFKA_EXPECTED)
    rest, _, query = rest.partition("?")
    credentials, _, servers = rest.rpartition("@")
    names = tuple(servers.rstrip("/").split(","))
    ports = [_SERVER.fullmatch(name) for name in names]
    if not all(port and 0 < int(port[1]) < 65_536 for port in ports):
        raise BrokerAddressError(_KAFKA_EXPECTED)
    options = {key: values[-1] for key, values in parse_qs(query, keep_blank_values=True).items()}
    user, _, password = credentials.partition(":")
    address = KafkaAddress(
        servers=names,
        tls=scheme == "kafkas",
        ca=options.pop("ca", ""),
        user=unquote(user),
        password=unquote(password),
        mechanism=options.pop("mechanism", "SCRAM-SHA-512"),
        partitions=_count(options.pop("partitions", str(PARTITIONS)), "partitions"),
        replication=_count(options.pop("replication", "1"), "replication"),
    )
    if options:
        known = "ca, mechanism, partitions, replication"
        raise BrokerAddressError(f"unknown parameter {min(options)}; known: {known}")
    if address.mechanism not in MECHANISMS:
        raise BrokerAddressError(f"mechanism is one of {', '.join(MECHANISMS)}")
    if address.ca and not address.tls:
        raise BrokerAddressError("ca needs TLS: write kafkas://")
    return address


def check_redis(url: str) -> None:
    """Raises BrokerAddressError unless `url` is an address of one Redis server."""
    try:
        parts = urlsplit(url)
        whole = parts.port != 0 and bool(parts.hostname)
    except ValueError as error:
        raise BrokerAddressError(_REDIS_EXPECTED) from error
    number = parts.path.removeprefix("/")
    known = parts.scheme in ("redis", "rediss") and whole and re.fullmatch(r"[0-9]*", number)
    if not known and not (parts.scheme == "unix" and parts.path):
        raise BrokerAddressError(_REDIS_EXPECTED)


def check_address(kind: Literal["kafka", "redis"], url: str) -> None:
    """Raises BrokerAddressError if no broker of this kind can be reached by `url`."""
    if kind == "kafka":
        parse_kafka(url)
    else:
        check_redis(url)


def _count(text: str, name: str) -> int:
    if re.fullmatch(r"[1-9][0-9]{0,3}", text):
        return int(text)
    raise BrokerAddressError(f"{name}: expected a whole number from 1")
