"""Adapters of peft, both ways."""
