"""A station that measures nothing: `python -m helpers.mute_station` shows ten signs of life for a task, and then answers.

For the second task it does not answer.
"""

import sys
import time

print(flush=True)
for number, task in enumerate(sys.stdin):
    for _ in range(10):
        time.sleep(0.1)
        print(flush=True)
    if number:
        time.sleep(1000)
    print(len(task), flush=True)
