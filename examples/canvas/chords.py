"""Chords: what follows when all of others have ended."""

from tasks import add, double, fail, tell, total

from celeriac import chord, group
from celeriac.errors import ChordError

# A chord: the body gets the list of what the header's members returned.
result = chord([add.s(1, 1), add.s(2, 2)], total.s()).delay()
print(result.get(timeout=10), result.parent.get(timeout=10))

# A group before a step is one.
print((group(add.s(n, n) for n in range(3)) | total.s() | double.s()).delay().get(timeout=10))

print((add.s(1, 1) | group(add.s(1), add.s(2)) | total.s()).delay().get(timeout=10))

# A member that fails: the body does not run, its result is the error.
broken = chord([add.s(1, 1), fail.s(2)], total.s().on_error(tell.s())).delay()
try:
    broken.get(timeout=10)
except ChordError as exc:
    print("raised:", str(exc).partition(" raised ")[2])
