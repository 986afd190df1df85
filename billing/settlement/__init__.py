"""Settlement: from a finished call to entries in the ledger."""
