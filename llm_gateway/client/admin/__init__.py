"""The admin API, a module for each part of it, as below llm_gateway/api/admin."""
