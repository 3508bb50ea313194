"""The two servers: routes and status codes over a store."""
