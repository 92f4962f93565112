"""Pieces for neighbours: what stands beside celeriac, not in it."""
