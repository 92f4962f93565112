"""The command `celeriac`: finds the app, calls what stands below, and says what came of it. Decides nothing itself.

Importing it imports click and nothing of the engine: each command's module is imported when the command is named.
"""
