"""A grid of runs on one machine, and the configuration that names each."""
