"""AnswerReader: every case whole, byte by byte, and cut at each boundary."""

import gzip
import zlib
from collections.abc import Iterator

import pytest

from llm_gateway.upstream import UpstreamBroken
from llm_gateway.upstream.answer import HEAD_BYTES_MAX, AnswerReader

OK = b"HTTP/1.1 200 OK\r\n"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"


def cuts(data: bytes) -> Iterator[list[bytes]]:
    """Whole, byte by byte, and in two at each boundary."""
    yield [data]
    yield [data[i : i + 1] for i in range(len(data))]
    for i in range(1, len(data)):
        yield [data[:i], data[i:]]


def read(pieces: list[bytes], *, start_late: bool = False, eof: bool = False) -> AnswerReader:
    """The reader after all pieces; its body is in `body_of`."""
    reader = AnswerReader()
    body: list[bytes] = []
    _bodies[id(reader)] = body
    if not start_late:
        reader.start(body.append)
    for piece in pieces:
        if start_late and reader.has_head:
            reader.start(body.append)
            start_late = False
        reader.feed(piece)
    if eof:
        reader.eof()
    if start_late:
        reader.start(body.append)
    return reader


_bodies: dict[int, list[bytes]] = {}


def body_of(reader: AnswerReader) -> bytes:
    return b"".join(_bodies[id(reader)])


def deflated(data: bytes, wbits: int) -> bytes:
    packer = zlib.compressobj(wbits=wbits)
    return packer.compress(data) + packer.flush()


def sized(field: bytes, body: bytes) -> bytes:
    return OK + field + b"content-length: %d\r\n\r\n%b" % (len(body), body)


GOOD = {
    "sized": (sized(b"", b"hello"), 200, b"hello", True),
    "sized, empty": (sized(b"", b""), 200, b"", True),
    "sized, line breaks at both ends": (sized(b"", b"\r\n{}\r\n"), 200, b"\r\n{}\r\n", True),
    "chunked": (CHUNKED + b"5\r\nhello\r\n6;x=y\r\n world\r\n0\r\n\r\n", 200, b"hello world", True),
    "chunked, empty": (CHUNKED + b"0\r\n\r\n", 200, b"", True),
    "trailers": (CHUNKED + b"2\r\nhi\r\n0\r\nx-sum: 1\r\n\r\n", 200, b"hi", True),
    "no content": (b"HTTP/1.1 204 No Content\r\n\r\n", 204, b"", True),
    "no content, with length": (b"HTTP/1.1 204 X\r\ncontent-length: 5\r\n\r\n", 204, b"", True),
    "not modified": (b"HTTP/1.1 304 X\r\ncontent-length: 5\r\n\r\n", 304, b"", True),
    "100 first": (b"HTTP/1.1 100 Continue\r\na: b\r\n\r\n" + sized(b"", b"x"), 200, b"x", True),
    "103 twice": (b"HTTP/1.1 103 Hints\r\n\r\n" * 2 + sized(b"", b"x"), 200, b"x", True),
    "close": (sized(b"Connection: close\r\n", b"hello"), 200, b"hello", False),
    "1.0": (b"HTTP/1.0 200 OK\r\ncontent-length: 2\r\n\r\nhi", 200, b"hi", False),
    "1.0 kept": (
        b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\ncontent-length: 2\r\n\r\nhi",
        200,
        b"hi",
        True,
    ),
    "no reason": (b"HTTP/1.1 404\r\ncontent-length: 1\r\n\r\nx", 404, b"x", True),
    "upgrade offered": (sized(b"upgrade: h2c\r\nconnection: upgrade\r\n", b"x"), 200, b"x", True),
    "identity": (sized(b"content-encoding: identity\r\n", b"x"), 200, b"x", True),
    "gzip": (sized(b"Content-Encoding: GZIP\r\n", gzip.compress(b"hello")), 200, b"hello", True),
    "gzip, two members": (
        sized(b"content-encoding: x-gzip\r\n", gzip.compress(b"a") + gzip.compress(b"b")),
        200,
        b"ab",
        True,
    ),
    "gzip, empty": (sized(b"content-encoding: gzip\r\n", b""), 200, b"", True),
    "deflate": (sized(b"content-encoding: deflate\r\n", deflated(b"hey", 15)), 200, b"hey", True),
    "raw deflate": (
        sized(b"content-encoding: deflate\r\n", deflated(b"hey", -15)),
        200,
        b"hey",
        True,
    ),
}

BAD = {
    "both, length first": OK + b"content-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    "both, coding first": OK + b"transfer-encoding: chunked\r\ncontent-length: 5\r\n\r\nhello",
    "two lengths": OK + b"content-length: 5\r\ncontent-length: 5\r\n\r\nhello",
    "two lengths in one": OK + b"content-length: 5, 5\r\n\r\nhello",
    "negative length": OK + b"content-length: -5\r\n\r\nhello",
    "signed length": OK + b"content-length: +5\r\n\r\nhello",
    "hex length": OK + b"content-length: 0x5\r\n\r\nhello",
    "empty length": OK + b"content-length:\r\n\r\nhello",
    "huge length": OK + b"content-length: 99999999999999999999999\r\n\r\nhello",
    "other coding": OK + b"transfer-encoding: gzip\r\n\r\nhello",
    "two codings": OK + b"transfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    "chunked twice": OK + b"transfer-encoding: chunked\r\n" * 2 + b"\r\n0\r\n\r\n",
    "bad chunk size": CHUNKED + b"5x\r\nhello\r\n0\r\n\r\n",
    "chunk longer than said": CHUNKED + b"4\r\nhello\r\n0\r\n\r\n",
    "huge chunk": CHUNKED + b"fffffffffffffffff\r\nhello",
    "line feeds": b"HTTP/1.1 200 OK\ncontent-length: 5\n\nhello",
    "folded": OK + b"a: b\r\n c\r\ncontent-length: 1\r\n\r\nx",
    "space before colon": OK + b"content-length : 5\r\n\r\nhello",
    "NUL": OK + b"a: b\0c\r\ncontent-length: 5\r\n\r\nhello",
    "101": b"HTTP/1.1 101 X\r\nupgrade: h2c\r\nconnection: upgrade\r\n\r\n" + sized(b"", b"x"),
    "101, bare": b"HTTP/1.1 101 X\r\n\r\n" + sized(b"", b"x"),
    "status 99": b"HTTP/1.1 99 X\r\ncontent-length: 0\r\n\r\n",
    "status 600": b"HTTP/1.1 600 X\r\ncontent-length: 0\r\n\r\n",
    "HTTP/2": b"HTTP/2.0 200 X\r\ncontent-length: 0\r\n\r\n",
    "not HTTP": b"SSH-2.0-OpenSSH_9.6\r\n",
    "brotli": sized(b"content-encoding: br\r\n", b"hello"),
    "gzip twice": sized(b"content-encoding: gzip, gzip\r\n", gzip.compress(b"x")),
    "gzip twice, two fields": sized(b"content-encoding: gzip\r\n" * 2, gzip.compress(b"x")),
    "not gzip": sized(b"content-encoding: gzip\r\n", b"hello"),
    "cut gzip": sized(b"content-encoding: gzip\r\n", gzip.compress(b"hello")[:-1]),
    "wrong gzip sum": sized(b"content-encoding: gzip\r\n", gzip.compress(b"hello")[:-8] + b"x" * 8),
    "rubbish after gzip": sized(b"content-encoding: gzip\r\n", gzip.compress(b"x") + b"junk"),
    "rubbish after deflate": sized(b"content-encoding: deflate\r\n", deflated(b"x", 15) + b"junk"),
}


@pytest.mark.parametrize("name", GOOD)
@pytest.mark.parametrize("start_late", [False, True])
def test_good_answer(name: str, start_late: bool) -> None:
    wire, status, body, keep_alive = GOOD[name]
    for pieces in cuts(wire):
        reader = read(pieces, start_late=start_late)
        assert (reader.complete, reader.status) == (True, status)
        assert (body_of(reader), reader.keep_alive) == (body, keep_alive)


@pytest.mark.parametrize("name", BAD)
def test_bad_answer_is_refused(name: str) -> None:
    for pieces in cuts(BAD[name]):
        with pytest.raises(UpstreamBroken):
            read(pieces)


@pytest.mark.parametrize("name", [n for n in GOOD if n not in {"close", "1.0"}])
@pytest.mark.parametrize("rest", [b"\r", b"\n", b"\r\n", b"\r\n\r\n", b"X", OK, b"\0"])
def test_bytes_after_the_end_are_refused(name: str, rest: bytes) -> None:
    """In the read that holds the end; what comes later is the connection's business."""
    wire = GOOD[name][0]
    for i in range(len(wire)):
        with pytest.raises(UpstreamBroken):
            read([wire[:i], wire[i:] + rest])


@pytest.mark.parametrize("name", GOOD)
def test_cut_answer_is_refused(name: str) -> None:
    wire = GOOD[name][0]
    for i in range(len(wire)):
        reader = read([wire[:i]] if i else [])
        assert not reader.complete
        with pytest.raises(UpstreamBroken):
            reader.eof()


@pytest.mark.parametrize("version", [b"1.0", b"1.1"])
def test_close_ends_an_answer_without_length(version: bytes) -> None:
    wire = b"HTTP/%b 200 OK\r\n\r\nhello\r\n\r\n" % version
    for pieces in cuts(wire):
        reader = read(pieces, eof=True)
        assert (reader.complete, reader.keep_alive) == (True, False)
        assert body_of(reader) == b"hello\r\n\r\n"


def test_close_delimited_gzip_that_is_cut() -> None:
    wire = OK + b"content-encoding: gzip\r\n\r\n" + gzip.compress(b"hello")
    assert body_of(read([wire], eof=True)) == b"hello"
    with pytest.raises(UpstreamBroken, match="cut short"):
        read([wire[:-1]], eof=True)


def test_head_has_a_limit() -> None:
    field = b"a: %b\r\n" % (b"x" * 1000)
    fits, too_long = HEAD_BYTES_MAX // len(field), HEAD_BYTES_MAX // len(field) + 1
    end = b"content-length: 1\r\n\r\nx"
    assert read([OK + field * (fits - 1) + end]).complete
    for size in (1, 4096, 10**6):
        wire = OK + field * too_long + end
        with pytest.raises(UpstreamBroken, match=r"bytes of head|head of more"):
            read([wire[i : i + size] for i in range(0, len(wire), size)])


def test_head_limit_holds_for_interim_answers_trailers_and_extensions() -> None:
    flood = 2 * HEAD_BYTES_MAX
    for wire in (
        b"HTTP/1.1 103 Hints\r\n\r\n" * (flood // 20),
        CHUNKED + b"1\r\nx\r\n0\r\nt: " + b"x" * flood,
        CHUNKED + b"1;e=" + b"x" * flood,
    ):
        with pytest.raises(UpstreamBroken):
            read([wire[i : i + 5000] for i in range(0, len(wire), 5000)])


def test_large_body_is_no_head() -> None:
    wire = sized(b"", b"x" * 10**6)
    assert len(body_of(read([wire]))) == 10**6


def test_headers_are_lower_case_and_trimmed_and_without_trailers() -> None:
    wire = OK + b"X-A: 1 \t\r\nX-a: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX-T: 3\r\n\r\n"
    reader = read([wire])
    assert reader.headers == [(b"x-a", b"1"), (b"x-a", b"2"), (b"transfer-encoding", b"chunked")]


def test_decoded_answer_does_not_describe_the_coded_one() -> None:
    reader = read([sized(b"content-encoding: gzip\r\na: b\r\n", gzip.compress(b"x"))])
    assert reader.headers == [(b"a", b"b")]


def test_a_bomb_goes_off_in_small_pieces_and_stops_when_paused() -> None:
    bomb = gzip.compress(b"\0" * 50_000_000)
    reader = AnswerReader()
    pieces: list[int] = []

    def stop(data: bytes) -> None:
        pieces.append(len(data))
        reader.paused = True

    reader.start(stop)
    reader.feed(sized(b"content-encoding: gzip\r\n", bomb))
    assert (pieces, reader.complete) == ([65536], False)
    while not reader.complete:
        reader.paused = False
        reader.pump()
    assert (sum(pieces), max(pieces)) == (50_000_000, 65536)


@pytest.mark.parametrize("wbits", [15, -15])
@pytest.mark.parametrize("size", [65_535, 65_536, 65_537, 131_072, 200_000])
def test_output_that_waits_when_the_input_is_used_up(wbits: int, size: int) -> None:
    packed = deflated(b"\0" * size, wbits)
    for cut in range(len(packed) - 12, len(packed)):
        wire = sized(b"content-encoding: deflate\r\n", packed)
        at = len(wire) - len(packed) + cut
        assert len(body_of(read([wire[:at], wire[at:]]))) == size


def test_what_the_consumer_raises_comes_out_of_feed() -> None:
    class OwnError(Exception):
        pass

    def refuse(data: bytes) -> None:
        raise OwnError

    reader = AnswerReader()
    reader.start(refuse)
    with pytest.raises(OwnError):
        reader.feed(sized(b"", b"hello"))


def test_nothing_is_handed_over_after_discard() -> None:
    reader = AnswerReader()
    got: list[bytes] = []

    def once(data: bytes) -> None:
        got.append(data)
        reader.discard()

    reader.start(once)
    reader.feed(CHUNKED + b"1\r\na\r\n1\r\nb\r\n")
    assert got == [b"a"]


def test_no_complaint_quotes_the_answer() -> None:
    for wire in BAD.values():
        with pytest.raises(UpstreamBroken) as caught:
            read([wire.replace(b"hello", b"CANARY")])
        assert "CANARY" not in str(caught.value)
