"""What a caller can ask for. Each part prints what it got."""

from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import ClassVar

import tasks

# Send, and wait for the result.
result = tasks.add.delay(2, 3)
print(result.id, result.get(timeout=10))

# Send with options.
later = tasks.add.apply_async((2, 3), countdown=1)
at = tasks.add.apply_async((2, 3), eta=datetime.now(UTC) + timedelta(seconds=1), expires=60)
print(later.get(timeout=10), at.get(timeout=10))

# Send by name, without importing the task.
results = tasks.add.delay_many([(1, 2), (3, 4), {"x": 5, "y": 6}])
print([result.get(timeout=10) for result in results])

print(tasks.app.send_task("tasks.add", (2, 3)).get(timeout=10))

# What went wrong is raised here, as what it was.
failed = tasks.fail.apply_async(link_error=tasks.tell.s())
try:
    failed.get(timeout=10)
except ValueError as exc:
    print("raised:", exc, failed.state)

# Ask how it stands, without waiting.
slow = tasks.import_rows.delay(100)
print(slow.state, slow.info)
print(slow.get(timeout=10), slow.state)

# One task after another: the result of the first is the first argument of the second.
tasks.add.apply_async((2, 3), link=tasks.log.s())

# Call it off before it starts.
unwanted = tasks.add.apply_async((2, 3), countdown=60)
unwanted.revoke()


class Shop(BaseHTTPRequestHandler):
    """A web server that is busy at first: each page is refused once."""

    refused: ClassVar[set[str]] = set()

    def do_GET(self):
        code = 200 if self.path in self.refused else 503
        self.refused.add(self.path)
        self.send_response(code)
        self.end_headers()
        self.wfile.write(self.path.encode())

    def log_message(self, *args):
        pass


with ThreadingHTTPServer(("127.0.0.1", 0), Shop) as shop:
    Thread(target=shop.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{shop.server_port}"
    print(tasks.fetch.delay(f"{url}/shoes").get(timeout=20), tasks.fetch_simply.delay(f"{url}/hats").get(timeout=20))
    shop.shutdown()

print(tasks.crunch.delay().get(timeout=20))
print(tasks.charge.delay("Ada").get(timeout=10))
