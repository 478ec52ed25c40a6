"""Labelled images in three disjoint splits: to train on, to choose by, to report."""

from paretune.data.images import ImageData, ImageSplit, load_data

__all__ = ["ImageData", "ImageSplit", "load_data"]
