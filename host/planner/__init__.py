"""Which models run on which hosts of a fleet, with how many processes each. Pure: demands in, a placement out."""
