"""The credit store: what is bought and what is earned, on top of the ledger."""
