"""Litestar controllers: the credit store, the admin API, and operations."""
