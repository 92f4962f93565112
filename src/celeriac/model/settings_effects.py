"""Settings that nothing reads, and why. One that is read must not stand here; a house test looks into the sources."""

from __future__ import annotations

from celeriac.model.settings_table import CELERY

NEEDLESS: dict[str, str] = {
    "broker_channel_error_retry": "an error of a channel is mended as a lost connection is",
    **dict.fromkeys(
        ("broker_connection_max_retries", "broker_connection_retry", "broker_connection_retry_on_startup"),
        "a worker connects again until it is stopped; for senders see task_publish_retry",
    ),
    "broker_heartbeat_checkrate": "twice in each heartbeat period",
    **dict.fromkeys(
        ("broker_pool_acquire_timeout", "broker_pool_limit", "redis_max_connections"),
        "a worker holds a few connections, another process one for each thread that sends or reads; none waits for one",
    ),
    **dict.fromkeys(
        ("control_queue_durable", "control_queue_exclusive", "control_queue_expires", "control_queue_ttl"),
        "queues of answers are exclusive, expire after 10 s, and keep a message for 300 s",
    ),
    "redis_retry_on_timeout": "a worker tries again until it succeeds, get() for 10 s",
    "redis_socket_keepalive": "always on",
    **dict.fromkeys(
        (
            "result_backend_always_retry", "result_backend_base_sleep_between_retries_ms",
            "result_backend_max_retries", "result_backend_max_sleep_between_retries_ms",
        ),
        "a worker stores again what could not be stored, until it is",
    ),
    "result_cache_max": "each result object remembers its own outcome",
    **dict.fromkeys(("result_exchange", "result_exchange_type"), "as in Celery, whose rpc results need no exchange"),
    "worker_deduplicate_successful_tasks": "always so",
    "worker_detect_quorum_queues": "always so; there is no prefetch of a whole connection to be switched off",
    "worker_enable_prefetch_count_reduction": "a worker takes what it can use soon, also after a reconnect",
    "worker_enable_soft_shutdown_on_idle": "an idle worker holds nothing that could be waited for",
    "worker_eta_task_limit": "what is due later waits in the broker's schedule, not in a worker",
    "worker_lost_wait": "all that an ended process had written is read before it counts as lost",
    "worker_pool_putlocks": "a child never gets more than it has room for",
    "worker_state_db": "the broker keeps revoked ids",
    "worker_timer": "the worker's loop has its own timer",
    "worker_timer_precision": "timers are exact",
}  # fmt: skip
"""Key -> why there is nothing to switch."""

_PERIODIC = "periodic tasks: run Celery's beat beside the workers"
_RESULTS = {
    "arangodb": "ArangoDB", "azureblockblob": "Azure Blob", "cassandra": "Cassandra", "cosmosdbsql": "Cosmos DB",
    "couchbase": "Couchbase", "elasticsearch": "Elasticsearch", "gcs": "Google Cloud Storage", "mongodb": "MongoDB",
    "s3": "S3",
}  # fmt: skip
_FAMILIES = {
    "beat": _PERIODIC,
    "event_queue": "receiving events: Celery's monitors do it",
    "security": "signed messages",
    **{family: f"{name} as result backend" for family, name in _RESULTS.items()},
}
_READ = frozenset({"event_queue_prefix"})

UNBUILT: dict[str, str] = {
    **{
        key: what
        for key in (row[0] for row in CELERY)
        for family, what in _FAMILIES.items()
        if key.startswith(f"{family}_") and key not in _READ
    },
    "event_serializer": "events in other forms than JSON",
    "task_remote_tracebacks": "remote tracebacks in errors that get() raises; `result.traceback` has them as text",
    "worker_agent": "agents",
    "worker_autoscaler": "autoscaling",
    "worker_cancel_long_running_tasks_on_connection_loss": "ending tasks when a connection is lost; they go on",
    "worker_consumer": "other classes of consumers",
    "worker_pool_restarts": "the command pool_restart",
}
"""Key -> what it would switch, and what to do until then."""
