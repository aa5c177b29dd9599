"""`GET /metrics`: facts are gathered, families made of them, and written as Prometheus reads them."""
