"""The table of wire streams: what odd providers send, what the client gets, what was used.

`want` are the bytes for a client that asked for usage, `plain` those for one that did not; None
stands for the wire's own bytes. `billed` are those for a client that asked what it cost (BILL: 320
micro-credits); None stands for `want` with the gateway's own event before [DONE], or at the end.
"""

from typing import Final

import msgspec

from llm_gateway.usage_cost import Bill
from pricing_rules.usage import ReportedUsage, Usage


class WireStream(msgspec.Struct, frozen=True, kw_only=True):
    """One stream and all that a meter must make of it."""

    name: str
    wire: bytes
    want: bytes | None = None  # to a client that asked for usage
    plain: bytes | None = None  # to a client that did not
    billed: bytes | None = None  # to a client that asked for its cost
    own: bytes = b""  # the gateway's own usage event; "" for OWN
    reported: ReportedUsage | None = None
    done: bool = True
    error: bool = False
    content: bool = True
    delivered: int = 2  # bytes of text


def used(prompt: int, completion: int, **more: int) -> ReportedUsage:
    """A plain report with its total; further counts by name."""
    return ReportedUsage(
        prompt=prompt, completion=completion, **{"total": prompt + completion, **more}
    )


HEAD: Final = b'{"id":"c1","object":"chat.completion.chunk","created":1700000000,"model":"m1",'
DONE: Final = b"data: [DONE]\n\n"


def sse(data: bytes) -> bytes:
    """An event as most send it."""
    return b"data: " + data + b"\n\n"


def chunk(delta: bytes, *, end: bytes = b"null", more: bytes = b"") -> bytes:
    """A chunk of one choice, as most send it; `more` are members behind `choices`."""
    return (
        HEAD
        + b'"choices":[{"index":0,"delta":'
        + delta
        + b',"finish_reason":'
        + end
        + b"}]"
        + more
        + b"}"
    )


def text(words: bytes, **more: bytes) -> bytes:
    """A chunk of one choice with this content (JSON-escaped)."""
    return chunk(b'{"content":"' + words + b'"}', **more)


def usage_only(usage: bytes, more: bytes = b"") -> bytes:
    """The chunk with empty choices that ends a stream."""
    return HEAD + b'"choices":[],"usage":' + usage + more + b"}"


HI: Final = sse(text(b"hi"))
STOP: Final = sse(chunk(b"{}", end=b'"stop"'))
U: Final = b'{"prompt_tokens":7,"completion_tokens":3,"total_tokens":10}'
USAGE: Final = sse(usage_only(U))
NULL: Final = b',"usage":null'

BILL: Final = Bill(micro_credits=320, usage=Usage(input=70, output=20, reasoning=2))
COST: Final = b',"cost":0.00032}'


def billed(event: bytes) -> bytes:
    """A usage-only event, of which `usage` is the last member, with the cost of BILL."""
    at = event.rindex(b"}}")
    return event[:at] + COST + event[at + 1 :]


def own(call: bytes = b"c1", created: int = 1700000000, model: bytes = b"m1") -> bytes:
    """The event that the gateway writes for BILL where the provider has none to put it in."""
    return (
        b'data: {"id":"%b","object":"chat.completion.chunk","created":%d,"model":"%b","choices":[],'
        b'"usage":{"prompt_tokens":70,"completion_tokens":22,"total_tokens":92,'
        b'"prompt_tokens_details":{"cached_tokens":0},'
        b'"completion_tokens_details":{"reasoning_tokens":2},"cost":0.00032}}\n\n'
    ) % (call, created, model)


OWN: Final = own()
BARE: Final = own(b"", 0, b"")  # where no chunk said what it is


def _with_usage(
    name: str, usage: bytes, reported: ReportedUsage | None, *, told: bytes = b""
) -> WireStream:
    """`told`: the usage that a client sees which asked for its cost; "": the provider's, with it."""
    last = sse(usage_only(usage))
    return WireStream(
        name=name,
        wire=HI + STOP + last + DONE,
        plain=HI + STOP + DONE,
        billed=HI + STOP + (sse(usage_only(told)) if told else billed(last)) + DONE,
        reported=reported,
    )


def _in_last_chunk(name: str, more: bytes, reported: ReportedUsage | None) -> WireStream:
    return WireStream(
        name=name, wire=HI + sse(chunk(b"{}", end=b'"stop"', more=more)) + DONE, reported=reported
    )


STREAMS: Final = (
    WireStream(
        name="OpenAI: usage null in every chunk, usage-only event at the end",
        wire=sse(chunk(b'{"role":"assistant","content":""}', more=NULL))
        + sse(text(b"h", more=NULL))
        + sse(text(b"i", more=NULL))
        + sse(text(b"\\n\\u4f60", more=NULL))
        + sse(chunk(b"{}", end=b'"stop"', more=NULL))
        + USAGE
        + DONE,
        plain=sse(chunk(b'{"role":"assistant","content":""}'))
        + sse(text(b"h"))
        + sse(text(b"i"))
        + sse(text(b"\\n\\u4f60"))
        + STOP
        + DONE,
        reported=used(7, 3),
        delivered=6,
        billed=sse(chunk(b'{"role":"assistant","content":""}', more=NULL))
        + sse(text(b"h", more=NULL))
        + sse(text(b"i", more=NULL))
        + sse(text(b"\\n\\u4f60", more=NULL))
        + sse(chunk(b"{}", end=b'"stop"', more=NULL))
        + billed(USAGE)
        + DONE,
    ),
    WireStream(
        name="OpenAI: padding behind usage null",
        wire=sse(text(b"h", more=NULL + b',"obfuscation":"ab"'))
        + sse(text(b"i", more=NULL + b',"obfuscation":"xyz1"'))
        + USAGE
        + DONE,
        plain=sse(text(b"h", more=b',"obfuscation":"ab"'))
        + sse(text(b"i", more=b',"obfuscation":"xyz1"'))
        + DONE,
        reported=used(7, 3),
        billed=sse(text(b"h", more=NULL + b',"obfuscation":"ab"'))
        + sse(text(b"i", more=NULL + b',"obfuscation":"xyz1"'))
        + billed(USAGE)
        + DONE,
    ),
    WireStream(
        name="usage null before choices, with spaces",
        wire=b'data: {"id": "c", "usage": null, "choices": [{"delta": {"content": "hi"}}]}\n\n'
        + sse(b'{"usage": null, "choices": [{"delta": {"content": "yo"}}]}')
        + DONE,
        plain=b'data: {"id": "c", "choices": [{"delta": {"content": "hi"}}]}\n\n'
        + sse(b'{"choices": [{"delta": {"content": "yo"}}]}')
        + DONE,
        delivered=4,
        own=own(b"c", 0, b""),
    ),
    WireStream(
        name="usage null as text, and nested, is not ours to touch",
        wire=sse(text(rb"{\"usage\":null}", more=b',"x":{"a":1,"usage":null},"y":{}' + NULL))
        + sse(text(rb",\"usage\":null", more=b',"z":[{"usage":null}]'))
        + DONE,
        plain=sse(text(rb"{\"usage\":null}", more=b',"x":{"a":1,"usage":null},"y":{}'))
        + sse(text(rb",\"usage\":null", more=b',"z":[{"usage":null}]'))
        + DONE,
        delivered=14 + 13,
    ),
    WireStream(
        name="usage null in the middle, brackets on both sides",
        wire=sse(text(b"h[i", more=NULL + b',"t":{"k":[1]}')) + DONE,
        plain=sse(text(b"h[i", more=b',"t":{"k":[1]}')) + DONE,
        delivered=3,
    ),
    WireStream(
        name="Azure: first event has empty choices and no usage",
        wire=sse(b'{"id":"","choices":[],"prompt_filter_results":[{"a":1}]}')
        + sse(b'{"choices":[],"prompt_filter_results":[],"usage":null}')
        + HI
        + STOP
        + USAGE
        + DONE,
        plain=sse(b'{"id":"","choices":[],"prompt_filter_results":[{"a":1}]}')
        + sse(b'{"choices":[],"prompt_filter_results":[]}')
        + HI
        + STOP
        + DONE,
        reported=used(7, 3),
        billed=sse(b'{"id":"","choices":[],"prompt_filter_results":[{"a":1}]}')
        + sse(b'{"choices":[],"prompt_filter_results":[],"usage":null}')
        + HI
        + STOP
        + billed(USAGE)
        + DONE,
    ),
    WireStream(
        name="CR LF everywhere, a comment, an id and a retry line",
        wire=(b": ping\n\n" + b"id: 4\nretry: 10\n" + HI + STOP + USAGE + DONE).replace(
            b"\n", b"\r\n"
        ),
        plain=(b": ping\n\n" + b"id: 4\nretry: 10\n" + HI + STOP + DONE).replace(b"\n", b"\r\n"),
        reported=used(7, 3),
        billed=(b": ping\n\n" + b"id: 4\nretry: 10\n" + HI + STOP + billed(USAGE) + DONE).replace(
            b"\n", b"\r\n"
        ),
    ),
    WireStream(
        name="CR alone",
        wire=(HI + HI + STOP + USAGE + DONE).replace(b"\n", b"\r"),
        plain=(HI + HI + STOP + DONE).replace(b"\n", b"\r"),
        reported=used(7, 3),
        delivered=4,
        billed=(HI + HI + STOP + billed(USAGE) + DONE).replace(b"\n", b"\r"),
    ),
    WireStream(
        name="line ends mixed",
        wire=sse(text(b"hi"))[:-1] + b"\r\n" + USAGE[:-2] + b"\r\n\n" + STOP[:-1] + b"\r" + DONE,
        plain=sse(text(b"hi"))[:-1] + b"\r\n" + STOP[:-1] + b"\r" + DONE,
        reported=used(7, 3),
    ),
    WireStream(
        name="no space behind data:",
        wire=(HI + HI + STOP + USAGE + DONE).replace(b"data: ", b"data:"),
        plain=(HI + HI + STOP + DONE).replace(b"data: ", b"data:"),
        reported=used(7, 3),
        delivered=4,
        billed=(HI + HI + STOP + billed(USAGE) + DONE).replace(b"data: ", b"data:"),
    ),
    WireStream(
        name="data over several lines",
        wire=b'data: {"choices":[{"delta":\ndata: {"content":"hi"}}],\ndata: "usage":null}\n\n'
        b'data: {"choices":[],\ndata:"usage":' + U + b"}\n\n" + DONE,
        plain=b'data: {"choices":[{"delta":\ndata: {"content":"hi"}}]}\n\n' + DONE,
        reported=used(7, 3),
        billed=b'data: {"choices":[{"delta":\ndata: {"content":"hi"}}],\ndata: "usage":null}\n\n'
        b'data: {"choices":[],\ndata: "usage":' + U[:-1] + COST + b"}\n\n" + DONE,
    ),
    WireStream(
        name="byte order mark",
        wire=b"\xef\xbb\xbf" + HI + STOP + USAGE + DONE,
        plain=b"\xef\xbb\xbf" + HI + STOP + DONE,
        reported=used(7, 3),
        billed=b"\xef\xbb\xbf" + HI + STOP + billed(USAGE) + DONE,
    ),
    WireStream(
        name="raw Chinese and emoji, cut anywhere",
        wire=sse(text("你".encode())) + sse(text("好😀".encode())) + USAGE + DONE,
        plain=sse(text("你".encode())) + sse(text("好😀".encode())) + DONE,
        reported=used(7, 3),
        delivered=10,
        billed=sse(text("你".encode())) + sse(text("好😀".encode())) + billed(USAGE) + DONE,
    ),
    WireStream(
        name="a surrogate pair split over two chunks",
        wire=sse(text(rb"\ud83d")) + sse(text(rb"\ude00")) + DONE,
        delivered=6,
    ),
    WireStream(
        name="a UTF-8 character split over two chunks",
        wire=sse(text(b"\xe4\xbd")) + sse(text(b"\xa0")) + DONE,
        delivered=4,
    ),
    WireStream(
        name="no [DONE]",
        wire=HI + STOP + USAGE,
        plain=HI + STOP,
        reported=used(7, 3),
        done=False,
        billed=HI + STOP + billed(USAGE),
    ),
    WireStream(
        name="no blank line at the end, after the usage",
        wire=HI + STOP + USAGE[:-2],
        plain=HI + STOP,
        reported=used(7, 3),
        done=False,
        billed=HI + STOP + billed(USAGE)[:-2],
    ),
    WireStream(name="no blank line behind [DONE]", wire=HI + STOP + b"data: [DONE]"),
    WireStream(
        name="usage in the middle of the stream",
        wire=HI + USAGE + HI + STOP + DONE,
        plain=HI + HI + STOP + DONE,
        reported=used(7, 3),
        delivered=4,
    ),
    WireStream(
        name="usage-only events in a row",
        wire=HI + USAGE + USAGE.replace(b":3,", b":4,").replace(b":10}", b":11}") + DONE,
        plain=HI + DONE,
        reported=used(7, 4),
        billed=HI + USAGE + billed(USAGE.replace(b":3,", b":4,").replace(b":10}", b":11}")) + DONE,
    ),
    WireStream(
        name="a comment behind the usage, and bytes behind [DONE]",
        wire=HI + STOP + USAGE + b": ping\n\n" + DONE + b"\n: bye\n\n",
        plain=HI + STOP + b": ping\n\n" + DONE + b"\n: bye\n\n",
        reported=used(7, 3),
        billed=HI + STOP + billed(USAGE) + b": ping\n\n" + DONE + b"\n: bye\n\n",
    ),
    _in_last_chunk("Mistral: usage in the last chunk with choices", b',"usage":' + U, used(7, 3)),
    WireStream(
        name="xAI: cumulative usage in every chunk, reasoning beside completion",
        wire=sse(
            text(
                b"h",
                more=b',"usage":{"prompt_tokens":7,"completion_tokens":1,"total_tokens":12,'
                b'"completion_tokens_details":{"reasoning_tokens":4}}',
            )
        )
        + sse(
            text(
                b"i",
                more=b',"usage":{"prompt_tokens":7,"completion_tokens":2,"total_tokens":18,'
                b'"completion_tokens_details":{"reasoning_tokens":9}}',
            )
        )
        + DONE,
        reported=used(7, 2, total=18, reasoning=9),
    ),
    WireStream(
        name="usage grows, then a report of zeros",
        wire=HI
        + sse(chunk(b"{}", end=b'"stop"', more=b',"usage":' + U))
        + sse(usage_only(b'{"prompt_tokens":0,"completion_tokens":0,"total_tokens":0}'))
        + DONE,
        plain=HI + sse(chunk(b"{}", end=b'"stop"', more=b',"usage":' + U)) + DONE,
        reported=used(7, 3),
        billed=HI
        + sse(chunk(b"{}", end=b'"stop"', more=b',"usage":' + U))
        + billed(sse(usage_only(b'{"prompt_tokens":0,"completion_tokens":0,"total_tokens":0}')))
        + DONE,
    ),
    WireStream(
        name="Moonshot: usage within the choice, cached_tokens on top",
        wire=HI
        + sse(
            HEAD + b'"choices":[{"index":0,"delta":{},"finish_reason":"stop","usage":'
            b'{"prompt_tokens":7,"completion_tokens":3,"total_tokens":10,"cached_tokens":5}}]}'
        )
        + DONE,
        reported=used(7, 3, cached=5),
    ),
    WireStream(
        name="usage within each of two choices",
        wire=sse(b'{"choices":[{"index":0,"delta":{"content":"a"},"usage":' + U + b"}]}")
        + sse(b'{"choices":[{"index":1,"delta":{"content":"b"},"usage":' + U + b"}]}")
        + DONE,
        reported=ReportedUsage(prompt=7, completion=6),
        own=BARE,
    ),
    _in_last_chunk(
        "Groq: x_groq.usage",
        b',"x_groq":{"id":"r","usage":{"queue_time":0.02,"prompt_tokens":7,'
        b'"completion_tokens":3,"total_tokens":10,"total_time":0.2}}',
        used(7, 3),
    ),
    _with_usage(
        "DeepSeek: cache hit and miss, no prompt_tokens",
        b'{"prompt_cache_hit_tokens":64,"prompt_cache_miss_tokens":6,"completion_tokens":3}',
        ReportedUsage(prompt=70, completion=3, cached=64),
    ),
    _with_usage(
        "OpenAI: details",
        b'{"prompt_tokens":70,"completion_tokens":30,"total_tokens":100,"prompt_tokens_details":'
        b'{"cached_tokens":64,"audio_tokens":2,"image_tokens":1},"completion_tokens_details":'
        b'{"reasoning_tokens":20,"audio_tokens":4,"accepted_prediction_tokens":0}}',
        used(70, 30, cached=64, audio_input=2, image_input=1, reasoning=20, audio_output=4),
    ),
    _with_usage(
        "Qwen: details null",
        b'{"prompt_tokens":7,"completion_tokens":3,"total_tokens":10,'
        b'"prompt_tokens_details":null,"completion_tokens_details":null}',
        used(7, 3),
    ),
    _with_usage(
        "OpenRouter: cost and cache writes",
        b'{"prompt_tokens":70,"completion_tokens":3,"total_tokens":73,"cost":0.0012,'
        b'"prompt_tokens_details":{"cached_tokens":0,"cache_write_tokens":60}}',
        used(70, 3, cached=0, cache_write_5m=60),
        told=b'{"prompt_tokens":70,"completion_tokens":3,"total_tokens":73,"provider_cost":0.0012,'
        b'"prompt_tokens_details":{"cached_tokens":0,"cache_write_tokens":60},"cost":0.00032}',
    ),
    WireStream(
        name="OpenRouter: usage and cost beside an empty delta",
        wire=HI + sse(chunk(b"{}", more=b',"usage":' + U[:-1] + b',"cost":0.5}')) + DONE,
        billed=HI
        + sse(chunk(b"{}", more=b',"usage":' + U[:-1] + b',"provider_cost":0.5}'))
        + OWN
        + DONE,
        reported=used(7, 3),
    ),
    WireStream(
        name="a usage-only event with a cost, in the middle of the stream",
        wire=HI
        + sse(usage_only(b'{"cost":1,"prompt_tokens":7,"completion_tokens":3}'))
        + STOP
        + DONE,
        plain=HI + STOP + DONE,
        billed=HI
        + sse(usage_only(b'{"provider_cost":1,"prompt_tokens":7,"completion_tokens":3}'))
        + STOP
        + OWN
        + DONE,
        reported=ReportedUsage(prompt=7, completion=3),
    ),
    WireStream(
        name="no blank line at the end, and no usage",
        wire=HI + STOP[:-2],
        billed=HI + STOP + OWN,
        done=False,
    ),
    WireStream(
        name="usage-only events in a row, the last without a blank line",
        wire=HI + USAGE + USAGE[:-2],
        plain=HI,
        billed=HI + USAGE + billed(USAGE)[:-2],
        reported=used(7, 3),
        done=False,
    ),
    _with_usage(
        "Anthropic's own names: input without cache",
        b'{"input_tokens":10,"output_tokens":3,"cache_read_input_tokens":100,'
        b'"cache_creation_input_tokens":60,"cache_creation":'
        b'{"ephemeral_5m_input_tokens":40,"ephemeral_1h_input_tokens":20}}',
        used(170, 3, cached=100, cache_write_5m=40, cache_write_1h=20),
    ),
    _with_usage(
        "Anthropic translated: prompt without cache, total with it",
        b'{"prompt_tokens":10,"completion_tokens":3,"total_tokens":113,'
        b'"cache_read_input_tokens":100}',
        used(110, 3, cached=100),
    ),
    _with_usage(
        "Anthropic translated: prompt with cache",
        b'{"prompt_tokens":110,"completion_tokens":3,"total_tokens":113,'
        b'"cache_read_input_tokens":100}',
        used(110, 3, cached=100),
    ),
    WireStream(
        name="Gemini: thoughts in the total alone",
        wire=HI.replace(b'"m1"', b'"gemini-2.5-pro"')
        + sse(b'{"choices":[],"usage":' + U.replace(b":10}", b":25}") + b"}")
        + DONE,
        plain=HI.replace(b'"m1"', b'"gemini-2.5-pro"') + DONE,
        reported=used(7, 3, total=25, reasoning=15),
        billed=HI.replace(b'"m1"', b'"gemini-2.5-pro"')
        + billed(sse(b'{"choices":[],"usage":' + U.replace(b":10}", b":25}") + b"}"))
        + DONE,
    ),
    _with_usage(
        "usage all zero",
        b'{"prompt_tokens":0,"completion_tokens":0,"total_tokens":0}',
        used(0, 0),
    ),
    _with_usage("usage empty", b"{}", None, told=b'{"cost":0.00032}'),
    _with_usage(
        "usage not an object", b'"n/a"', None, told=OWN[OWN.rindex(b'{"prompt_tokens') : -3]
    ),
    _with_usage(
        "counts of no sensible type",
        b'{"prompt_tokens":"7","completion_tokens":-3,"total_tokens":4.5,'
        b'"prompt_tokens_details":{"cached_tokens":true}}',
        ReportedUsage(prompt=-1, completion=-3, total=-1, cached=-1),
    ),
    _with_usage(
        "counts as floats, null beside them",
        b'{"prompt_tokens":7.0,"completion_tokens":3.0,"total_tokens":null}',
        ReportedUsage(prompt=7, completion=3),
    ),
    WireStream(name="never any usage", wire=HI + STOP + DONE),
    WireStream(name="nothing at all", wire=b"", own=BARE, done=False, content=False, delivered=0),
    WireStream(name="only [DONE]", wire=DONE, own=BARE, content=False, delivered=0),
    WireStream(
        name="empty answer",
        wire=sse(chunk(b'{"role":"assistant","content":""}')) + STOP + DONE,
        content=False,
        delivered=0,
    ),
    WireStream(
        name="reasoning, then content",
        wire=sse(chunk(b'{"content":null,"reasoning_content":"ab"}'))
        + sse(chunk(b'{"content":null,"reasoning_content":"cd"}'))
        + sse(chunk(b'{"content":"ef","reasoning_content":null}'))
        + sse(chunk(b'{"content":"gh","reasoning_content":null}'))
        + STOP
        + DONE,
        delivered=8,
    ),
    WireStream(
        name="reasoning told twice in one chunk",
        wire=sse(chunk(b'{"reasoning":"ab","reasoning_details":[{"text":"ab"}]}'))
        + sse(chunk(b'{"reasoning":"cd","reasoning_content":"cd"}'))
        + STOP
        + DONE,
        delivered=4,
    ),
    WireStream(
        name="tool calls",
        wire=sse(
            chunk(
                b'{"tool_calls":[{"index":0,"id":"t","type":"function",'
                b'"function":{"name":"get","arguments":""}}]}'
            )
        )
        + sse(chunk(rb'{"tool_calls":[{"index":0,"function":{"arguments":"{\"a\""}}]}'))
        + sse(chunk(b'{"tool_calls":[{"index":0,"function":{"arguments":":1}"}}]}'))
        + STOP
        + DONE,
        delivered=3 + 4 + 3,
    ),
    WireStream(
        name="two choices, taking turns",
        wire=b"".join(
            sse(
                b'{"choices":[{"index":%d,"delta":{"content":"x"},"finish_reason":null}]}' % (n % 2)
            )
            for n in range(6)
        )
        + DONE,
        delivered=6,
        own=BARE,
    ),
    WireStream(
        name="refusal, audio, function_call",
        wire=sse(chunk(b'{"refusal":"no"}'))
        + sse(chunk(b'{"audio":{"id":"a","data":"AAAA","transcript":"hm"}}'))
        + sse(chunk(b'{"function_call":{"name":"f","arguments":"{}"}}'))
        + STOP
        + DONE,
        delivered=2 + 2 + 3,
    ),
    WireStream(
        name="event: error",
        wire=HI + b'event: error\ndata: {"message":"overloaded"}\n\n' + DONE,
        want=HI + b'event: error\ndata: {"message":"overloaded"}\n\n',
        plain=HI + b'event: error\ndata: {"message":"overloaded"}\n\n',
        error=True,
    ),
    WireStream(
        name="an error object as data, after usage",
        wire=HI + USAGE + sse(b'{"error":{"message":"x","code":502}}') + DONE,
        want=HI + USAGE + sse(b'{"error":{"message":"x","code":502}}'),
        plain=HI + sse(b'{"error":{"message":"x","code":502}}'),
        reported=used(7, 3),
        error=True,
    ),
    WireStream(name="error null is none", wire=sse(text(b"hi", more=b',"error":null')) + DONE),
    WireStream(
        name="data that is no JSON, or no object",
        wire=sse(b"hello") + sse(b"[1,2]") + sse(b'{"choices":7}') + sse(b"") + HI + DONE,
    ),
    WireStream(
        name="created changes with every chunk",
        wire=b"".join(
            sse(b'{"created":%d,"choices":[{"delta":{"content":"x"}}],"usage":null}' % n)
            for n in range(5)
        )
        + DONE,
        plain=b"".join(
            sse(b'{"created":%d,"choices":[{"delta":{"content":"x"}}]}' % n) for n in range(5)
        )
        + DONE,
        delivered=5,
        own=own(b"", 1, b""),
    ),
)
