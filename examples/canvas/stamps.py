"""Stamps: headers on every task of a canvas, to find it by."""

from uuid import uuid4

from tasks import add, double

from celeriac import StampingVisitor, group

whole = group(add.s(1, 1) | double.s(), add.s(2, 2))
whole.stamp(customer="Ada")
print(whole.tasks[0].tasks[1].options)


class Numbered(StampingVisitor):
    """Every task gets an id by which it is found in our own logs."""

    def on_signature(self, sig, **headers):
        return {"log_id": uuid4().hex}

    def on_group_start(self, group, **headers):
        return {"batch": "nightly"}


whole.stamp(Numbered())
result = whole.delay()
print(result.get(timeout=10))
