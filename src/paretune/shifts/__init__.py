"""Data that is not as the training data is: how far apart two sets are."""
