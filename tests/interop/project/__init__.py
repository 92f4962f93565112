"""Run in a folder of their own, by whichever interpreter stands on that side."""
