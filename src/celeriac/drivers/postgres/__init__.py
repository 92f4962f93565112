"""PostgreSQL over psycopg: where it is, connections with deadlines, its tables and functions.

Broker, results and chords share all of it, so that what follows from a task is one transaction.
"""
