"""The operator's side of the contracts: host settings, the deployment, the run directory. A leaf beside `protocol`."""
