"""Makes the benchmark's model, in a process of its own: torch would count as the memory of the measured ones.

python benchmarks/_make_model.py [SIZE]
"""

import sys

from _workloads import model_folder

if __name__ == "__main__":
    model_folder(*sys.argv[1:])
