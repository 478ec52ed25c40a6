"""Vega-Lite specifications as plain dictionaries, one file a plot."""
