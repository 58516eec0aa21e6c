"""RabbitMQ, the queue lane's broker: its topology, and the management API that declares and watches it."""
