"""Redis and Valkey: URLs, an asyncio and a blocking connection over hiredis, scripts. What goes over them is not known
here.

`url` reads a URL, `protocol` holds what both kinds of connection share, `aio` and `blocking` are the two kinds,
`script` runs Lua by its digest. Needs Redis >= 6.2 or Valkey; hiredis is imported on the first connection.
"""
