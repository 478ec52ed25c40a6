"""Checks that the attack kernels compute on this machine what plain PyTorch does."""
