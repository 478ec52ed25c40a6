"""Time ``paretune compare`` without arguments.

python benchmarks/quickstart.py            # appends to benchmarks/quickstart.csv, draws benchmarks/quickstart.png
"""

from _comparison import measure

if __name__ == "__main__":
    measure("quickstart")
