"""The database: tables, sessions, and the batched money writes of each engine."""
