"""What needs a global, or an old spelling: `current_app`, `shared_task`, `signals`, and the alias of Celery's names."""
