"""The endpoints. Each module registers its own with `add_routes(routes, service)`."""
