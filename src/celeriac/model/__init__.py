"""Pure data: what travels between the rooms. No clock, no socket, no global."""
