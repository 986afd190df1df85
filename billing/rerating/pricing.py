"""What each call would have cost by another book; or why nobody can say. Pure but for the books it asks for."""

from collections.abc import Iterable

from billing.books import PriceBooks, UnknownBookError
from billing.events import Revision, UsageSource
from billing.kinds import LeftOut
from billing.ledger import AMOUNT_MAX
from billing.rerating.calls import Call
from pricing_rules.book import Book, Rule
from pricing_rules.match import match
from pricing_rules.rerate import rerate


class Rerater:
    """Prices calls by one book. `version`: its number; 0 for one that is not stored."""

    def __init__(self, book: Book, version: int) -> None:
        self._book = book
        self._version = version
        # By book and rule of the calls; None: there is no such rule.
        self._rules: dict[tuple[int, str], Rule | None] = {}

    async def learn(self, calls: Iterable[Call], books: PriceBooks) -> None:
        """Find the rules that calls were priced by. Raises what the database raises."""
        wanted = {(call.book, call.rule) for call in calls} - self._rules.keys()
        for version in sorted({version for version, _ in wanted}):
            try:
                rules = {rule.id: rule for rule in (await books.get(version)).rules}
            except UnknownBookError:
                rules = {}
            for key in wanted:
                if key[0] == version:
                    self._rules[key] = rules.get(key[1])

    def price(self, call: Call) -> int | LeftOut:
        """What a call costs by the book, in micro-credits. Its rule must have been learnt."""
        if call.revision == Revision.ESTIMATE:
            return LeftOut.ESTIMATE
        if call.book == self._version:
            return call.amount  # whatever it was, by the very book: going back leads back
        if call.usage_source == UsageSource.HOLD:
            return LeftOut.NO_USAGE
        old = self._rules[call.book, call.rule]
        if old is None:
            return LeftOut.UNKNOWN_BOOK
        new = match(self._book, call.scene, call.provider, call.model, call.started_at)
        if new is None:
            return LeftOut.NO_RULE
        found = rerate(old, new, call.usage, call.started_at, call.amount)
        if isinstance(found, str):
            return LeftOut(found)
        return found if found <= AMOUNT_MAX else LeftOut.TOO_LARGE
