"""AMQP 0-9-1, as RabbitMQ speaks it: a codec and a state machine without I/O, and two kinds of connection on them."""
