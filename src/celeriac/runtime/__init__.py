"""What runs a task: message bytes in, a finished report out. No socket, no process, no signal."""
