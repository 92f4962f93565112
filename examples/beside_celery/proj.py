"""A Celery project that moves task by task: its Celery workers give back what only celeriac's know."""

from celery import Celery

from celeriac.contrib.celery_peer import give_back_unknown

app = Celery("proj", broker="redis://localhost/0")
give_back_unknown(app)


@app.task
def not_moved_yet():
    return "run by Celery"
