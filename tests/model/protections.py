"""The rules that keep the money right, each of which the model can be run without."""

from enum import StrEnum


class Protection(StrEnum):
    """One rule of the protocol; the value says what is lost without it."""

    HOLD_UNTIL_SETTLED = "a hold goes only with a balance that contains its charge"
    NEWER_BALANCE_WINS = "a balance is written only if its sequence number is newer"
    NEW_SERVER_IS_LOSS = "another server behind the address means that holds may be lost"
    MISS_IS_JUDGED = "an account that was there in this epoch and is not means the same"
    MARK_ON_REREGISTER = "an account is marked before its holds are registered anew"
    FIRST_MAKES_ROOM = "only who brings an account in first in an epoch makes room for it"
    GRACE = "after a loss nobody is admitted until all live processes registered their holds"
    REREGISTER = "heartbeats bring back holds that the guard lost"
    SPOOLED_CALLS_REREGISTER = "also those of calls whose event only lies in the spool"
    FENCED_HEARTBEATS = "a heartbeat of an older epoch is no registration"
    LARGER_AMOUNT_WINS = "a late heartbeat never makes a hold smaller"
    LOAD_TOKEN = "an account is loaded only onto the mark that its loader left"
    LOAD_NOT_OLDER = "an account is loaded only with a balance that is not older than its holds"
    REBUILD_READS_LATE = "the ledger is read after the registration, not before"
    REBUILD_READS_OUTBOX = "what waits for settlement is held again"
    REBUILD_READS_QUARANTINE = "what lies in quarantine is held again"
    REBUILD_READS_RESIDUALS = "what may yet follow an estimate is held again"
    IDEMPOTENT_RESERVE = "a repeated reserve holds once"
    GRANT_LIMITS_COST = "a call that was granted less than it wanted is cut to the grant"
    EXTEND_ASKS = "a hold grows only as far as there is credit"
    DEBITS_TAKE_HOLDS = "debits that are no calls hold their amount first"
    DEAD_PROCESS_STOPS = "a process that is declared dead neither admits nor extends"
    ORPHANS_ARE_CHARGED = "the hold of a dead process becomes a charge, never air"
    RESIDUAL_HELD = "an estimate leaves the rest of the ceiling held"
    RESIDUAL_WAITS_FOR_FINAL = "age does not end it while the owner's word waits for settlement"
    RESIDUAL_WAITS_FOR_SPOOLS = "nor before every spool can have been replayed after an outage"
    DEDUPE = "an event is posted once"
    FINAL_BEATS_ESTIMATE = "the owner's word corrects an estimate"
    ESTIMATE_NEVER_BEATS_FINAL = "a late estimate is dropped"
    CANCEL_BLOCKS_ESTIMATE = "a cancelled call is never charged by estimate"
    FIRST_WORD_STANDS = "another word of the same revision changes nothing"
    SPOOL = "an event that the database does not take is kept on disk"
    QUARANTINE_KEEPS_EVENT = "a poisonous event is set aside, not deleted"
    QUARANTINE_KEEPS_HOLD = "and its hold stays"
    RESEND_APPLY = "what settlement told the guard is told again while a hold contradicts it"
    RECONCILE = "balances are told again from time to time"


ALL = frozenset(Protection)
