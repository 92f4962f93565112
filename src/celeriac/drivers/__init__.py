"""Connections that the broker and the result backend of one server share. Imported only when they are used."""
