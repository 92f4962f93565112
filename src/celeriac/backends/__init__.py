"""Adapters of result stores. Each imports its driver on first use and translates its errors at the border."""
