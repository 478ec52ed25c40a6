"""State dicts of loralib, both ways."""
