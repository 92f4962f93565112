"""Child processes: how they are made, fed, limited and replaced. Signals, AF_UNIX and fork stand only here.

`frames` and `slots` are what parent and child agree on; `template` and `child` run there; `processes`,
`watch` and `forge` run in the parent.
"""
