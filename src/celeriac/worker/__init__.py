"""The worker's parent process: it owns every connection and runs no task.

`worker` supervises; `session` is one connection's life (claim, settle, renew, recover); `admission` decides, purely;
`completion` carries out what children report; `control` and `events` speak with the cluster.
"""
