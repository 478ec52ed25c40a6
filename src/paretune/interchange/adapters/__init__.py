"""Adapters of the adapters library, read."""
