"""SQL: the tables, their migrations, and what is read from and written to them outside the request's path."""
