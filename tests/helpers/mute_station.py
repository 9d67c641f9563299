"""A station that measures nothing: `python -m helpers.mute_station` shows ten signs of life for a task, and then answers.

For the second task it does not answer.
"""

import sys
import time

sys.stdout.write("\n")
sys.stdout.flush()
for number, task in enumerate(sys.stdin):
    for _ in range(10):
        time.sleep(0.1)
        sys.stdout.write("\n")
        sys.stdout.flush()
    if number:
        time.sleep(1000)
    sys.stdout.write(f"{len(task)}\n")
    sys.stdout.flush()
