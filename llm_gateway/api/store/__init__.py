"""The credit store, a module for each resource: what the owner of an account sees of it."""
