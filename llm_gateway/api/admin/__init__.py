"""The admin API, a module for each resource."""
