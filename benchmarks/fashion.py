"""Time the comparison on DINOv2-small and Fashion-MNIST, 2,000 images.

python benchmarks/fashion.py               # appends to benchmarks/fashion.csv, draws benchmarks/fashion.png
"""

from _comparison import measure

if __name__ == "__main__":
    options = ["--backbone", "dinov2-small", "--data", "fashion-mnist", "--limit", "2000", "--img-size", "28"]
    measure("fashion", *options)
