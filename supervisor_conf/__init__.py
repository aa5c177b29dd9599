"""supervisord's configuration: one template and the pure renderer of per-model programs."""
