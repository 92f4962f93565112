"""Planning: which messages follow. Pure: ids and the time come in as arguments, nothing is sent here."""
