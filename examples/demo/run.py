"""Counts the words of the texts that are named on the command line, many at a time.

    celeriac -A tasks worker
    python run.py ../../README.md ../../docs/*.md
"""

import sys

from tasks import combine, count_words

counts = [count_words.delay(path) for path in sys.argv[1:]]
words = combine.delay([count.get(timeout=30) for count in counts])
for word, number in words.get(timeout=30):
    print(f"{number:6} {word}")
