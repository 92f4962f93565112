"""Adapters of message brokers. Each imports its driver on first use and translates its errors at the border."""
