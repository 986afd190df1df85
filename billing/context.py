"""BillingContext: who pays for a call, under which rule; made once at admission and never changed."""

import msgspec


class BillingContext(msgspec.Struct, frozen=True, kw_only=True):
    """What every hold, usage row and charge event says about the call it belongs to.

    `event_id` is the hold's id and the charge's id as well. It is always ours: a client's own
    request id is only noted in `client_request_id`.
    """

    event_id: str
    account: str
    key_id: str
    app: str  # the internal service behind an app key; "" for a user key
    scene: str
    provider: str
    model_requested: str
    model_sent: str
    run_id: str
    client_request_id: str
    book: int  # version of the price book; 0: no call, but a debit that holds like one
    rule: str  # id of the rule within it
    started_at: int  # milliseconds since the epoch

    @property
    def is_call(self) -> bool:
        """Whether it is a call that holds; else a correction or re-rating, which is resumed by itself."""
        return self.book > 0


def encode_context(context: BillingContext) -> bytes:
    """The context as the opaque bytes that a hold keeps."""
    return _encoder.encode(context)


def decode_context(data: bytes) -> BillingContext:
    """The context out of a hold's bytes; raises msgspec.ValidationError if they are not one."""
    return _decoder.decode(data)


_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(BillingContext)
