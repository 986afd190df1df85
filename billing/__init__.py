"""From admission to the ledger: holds, charge events, settlement; knows no HTTP and no OpenAI."""
