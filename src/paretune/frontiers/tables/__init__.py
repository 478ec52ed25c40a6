"""Anybody's table of results: its columns, its areas and ranks, and spreadsheets in and out."""
