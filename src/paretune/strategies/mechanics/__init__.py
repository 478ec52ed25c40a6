"""What strategies are made of: deltas on weights, modules at sites, and putting them on a model."""
