"""Calls that are put together before they are made. Each part prints what came of it."""

from tasks import add, double, fail, tell, total

from celeriac import chain, chunks, group, signature

# A signature is a call that is not made yet.
call = add.s(2, 3)
print(call, call.delay().get(timeout=10))

half = add.s(3)
print(half.delay(2).get(timeout=10))

fixed = add.si(2, 3).set(countdown=0.1, expires=60)
print(fixed.delay().get(timeout=10))

print(signature({"task": "tasks.add", "args": [2, 3]}).delay().get(timeout=10))

# A chain: each step gets what the one before returned.
result = (add.s(2, 3) | double.s() | add.s(1)).delay()
print(result.get(timeout=10), result.parent.get(timeout=10), result.parent.parent.get(timeout=10))

steps = chain(add.s(number) for number in range(10))
print(steps.delay(0).get(timeout=10))

# A group: all at once. Its result is all of theirs, in their order.
members = group(add.s(number, number) for number in range(5))
result = members.delay()
print(result.get(timeout=10), result.completed_count(), result.successful())

result.save()
print(result.restore(result.id).get(timeout=10))

# Many calls in few messages.
print(double.map([1, 2, 3]).delay().get(timeout=10))
print(add.starmap([(1, 2), (3, 4)]).delay().get(timeout=10))
print(chunks(add.s(), [(number, number) for number in range(6)], 3)().get(timeout=10))

# What follows a failure.
broken = chain(double.s(1), fail.s(), double.s()).on_error(tell.s()).delay()
try:
    broken.get(timeout=10)
except ValueError as exc:
    print("raised:", exc)

print(total.s([1, 2, 3]).delay().get(timeout=10))
